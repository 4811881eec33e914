"""Token-level perplexity, streamed: the protocol of the pruning literature.

The documents of a split are joined, tokenised once, and cut into non-overlapping windows of ``length`` tokens; each
window predicts its ``length - 1`` later tokens; the perplexity is ``exp`` of the mean negative log-likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from tqdm import tqdm

from freelunch.engine.states import advance, batches
from freelunch.engine.streaming import Network
from freelunch.engine.transfers import arriving
from freelunch.errors import FreelunchError

MARGIN = 256
"""Tokens behind those wanted before what comes after them cannot matter: the end of a text changes how the last word
or the last merges before it are tokenised, and tokenizers that weigh whole sequences forget within some tokens."""
FIRST = 64
"""Documents that are tokenised first; then twice as many, until there are tokens enough."""


@dataclass(frozen=True)
class Perplexity:
    """A perplexity and its standard error over windows: ``value`` times that of the mean log-likelihood."""

    value: float
    stderr: float
    windows: int
    tokens: int


def first_tokens(
    texts: Iterable[str], separator: str, encode: Callable[[str], list[int]], count: int | None
) -> list[int]:
    """At least the first ``count`` tokens of the joined texts (fewer if there are fewer); all of them if None.

    Joining tokenised documents would give other tokens at every seam, so the documents are joined first. Of them only
    as many are read as give ``count`` tokens and :data:`MARGIN` more: the first ``count`` are those of the whole.
    """
    source = iter(texts)
    documents = list(islice(source, None if count is None else FIRST))
    while True:
        tokens = encode(separator.join(documents))
        more = [] if count is None or len(tokens) >= count + MARGIN else list(islice(source, len(documents)))
        if not more:
            return tokens
        documents += more


def cut(tokens: Sequence[int], length: int, sequences: int | None, where: str) -> Tensor:
    """The first ``sequences`` windows ``[sequences, length]`` of a tokenised text; all of them if None.

    Raises:
        FreelunchError: the text is too short.
    """
    available = len(tokens) // length
    count = available if sequences is None else sequences
    if not 0 < count <= available:
        raise FreelunchError(f"{where}: has {len(tokens)} tokens, {max(count, 1)} windows of {length} were asked for")
    return torch.tensor(tokens[: count * length]).reshape(count, length)


def batched(windows: Mapping[str, Tensor], stream_tokens: int) -> list[tuple[str, Tensor]]:
    """Batches of at most ``stream_tokens`` tokens of several sets of windows, each with the name of its set."""
    return [
        (name, tokens[rows])
        for name, tokens in windows.items()
        for rows in batches(len(tokens), max(1, stream_tokens // tokens.shape[1]))
    ]


def embedded(network: Network, parts: Sequence[tuple[str, Tensor]]) -> list[Tensor]:
    """Hidden states ``[sequences, length, width]`` at the first block's input, on the CPU, for every batch."""
    with network.embedding() as embed:
        return [embed(tokens).cpu() for _, tokens in parts]


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean of values and its standard error, which is NaN for one value."""
    count = len(values)
    return values.mean().item(), values.std().item() / math.sqrt(count) if count > 1 else math.nan


@torch.no_grad()
def perplexities(network: Network, windows: Mapping[str, Tensor], stream_tokens: int) -> dict[str, Perplexity]:
    """Perplexities of several sets of windows (``[sequences, length]`` each) in one pass over the blocks.

    Raises:
        FreelunchError: a log-likelihood is not finite.
    """
    parts = batched(windows, stream_tokens)
    hidden = embedded(network, parts)
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
    results = {}
    for name, tokens in windows.items():
        values = torch.stack(losses[name]).cpu().double()
        if not bool(values.isfinite().all()):
            raise FreelunchError(f"perplexity of {name}: the log-likelihood of a window is NaN or infinite")
        mean, error = mean_and_error(values)
        value = math.exp(min(mean, 700.0))
        results[name] = Perplexity(value, value * error, len(tokens), tokens.numel() - len(tokens))
    return results
