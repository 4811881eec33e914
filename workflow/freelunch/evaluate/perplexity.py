"""Token-level perplexity, streamed: the protocol of the pruning literature.

The documents of a split are joined, tokenised once, and cut into non-overlapping windows of ``length`` tokens; each
window predicts its ``length - 1`` later tokens; the perplexity is ``exp`` of the mean negative log-likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from freelunch.engine.states import advance, batches
from freelunch.engine.streaming import Network
from freelunch.engine.transfers import arriving
from freelunch.errors import FreelunchError


@dataclass(frozen=True)
class Perplexity:
    """A perplexity and its standard error over windows: ``value`` times that of the mean log-likelihood."""

    value: float
    stderr: float
    windows: int
    tokens: int


def cut(tokens: Sequence[int], length: int, sequences: int | None, where: str) -> Tensor:
    """The first ``sequences`` windows ``[sequences, length]`` of a tokenised text; all of them if None.

    Raises:
        FreelunchError: the text is too short.
    """
    available = len(tokens) // length
    wanted = available if sequences is None else sequences
    if not 0 < wanted <= available:
        raise FreelunchError(f"{where}: has {len(tokens)} tokens, {max(wanted, 1)} windows of {length} were asked for")
    return torch.tensor(tokens[: wanted * length]).reshape(wanted, length)


@torch.no_grad()
def perplexities(network: Network, windows: dict[str, Tensor], stream_tokens: int) -> dict[str, Perplexity]:
    """Perplexities of several sets of windows (``[sequences, length]`` each) in one pass over the blocks.

    Raises:
        FreelunchError: a log-likelihood is not finite.
    """
    parts = [
        (name, tokens[rows])
        for name, tokens in windows.items()
        for rows in batches(len(tokens), max(1, stream_tokens // tokens.shape[1]))
    ]
    with network.embedding() as embed:
        hidden = [embed(tokens).cpu() for _, tokens in parts]
    for index in tqdm(range(len(network.blocks)), desc="hidden states", unit="block"):
        with network.block(index) as block:
            advance(network, index, block, hidden)
    losses: dict[str, list[Tensor]] = {name: [] for name in windows}
    # one sequence at a time: logits are the widest tensor of all
    order = [(at, slice(row, row + 1)) for at, (_, tokens) in enumerate(parts) for row in range(len(tokens))]
    states = arriving(network.copies, [(hidden[at], row) for at, row in order], network.products)
    targets = arriving(network.copies, [(parts[at][1], row) for at, row in order], torch.long)
    with network.head() as head:
        rows = zip(order, states, targets, strict=True)
        for (at, _), state, target in tqdm(rows, desc="log-likelihoods", unit="sequence", total=len(order)):
            logits = head(state)[0, :-1].float()
            losses[parts[at][0]].append(torch.nn.functional.cross_entropy(logits, target[0, 1:]))
    return {name: _summary(name, torch.stack(values).cpu().double(), windows[name]) for name, values in losses.items()}


def _summary(name: str, losses: Tensor, windows: Tensor) -> Perplexity:
    if not bool(losses.isfinite().all()):
        raise FreelunchError(f"perplexity of {name}: the log-likelihood of a window is NaN or infinite")
    count = len(losses)
    mean = losses.mean().item()
    value = math.exp(min(mean, 700.0))
    spread = losses.std().item() / math.sqrt(count) if count > 1 else math.nan
    return Perplexity(value, value * spread, count, windows.numel() - count)
