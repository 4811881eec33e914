"""Activation drift: how far the states of a pruned or recovered network are from the dense ones, block by block.

For every token ``‖x̂ − x‖² / ‖x‖²`` is taken, where ``x`` is the output of a block of the dense network and ``x̂`` that
of the same block of the other one; then the median over the tokens of a sequence, and the mean over sequences. A few
tokens, often the first of a sequence, have norms that dwarf all others: in a ratio of sums only they would count, and
where pruning moves them to another token, its distance (thousands) would be all there is of a mean.

Source: the authors' check of activation distances (``check_act_dist.py``, arXiv 2510.14444), which takes the mean and
the maximum over tokens at the outputs of matrices, and locally prunes one matrix at a time; here it is blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from freelunch.engine.streaming import Network
from freelunch.errors import FreelunchError
from freelunch.evaluate.perplexity import batched, embedded, mean_and_error


@dataclass(frozen=True)
class Drift:
    """Drift of a block's output, with its standard error over sequences (NaN for one sequence).

    ``local``: the block reads dense states. ``accumulated``: it reads what everything before it in its own network
    gives, from the embedding on.
    """

    local: float
    local_stderr: float
    accumulated: float
    accumulated_stderr: float


@torch.no_grad()
def drifts(
    dense: Network, network: Network, windows: Mapping[str, Tensor], stream_tokens: int
) -> dict[str, list[Drift]]:
    """Drifts behind every block for several sets of windows (``[sequences, length]`` each), in one pass over blocks.

    Held are the states of all windows in both networks, and one block of each.

    Raises:
        FreelunchError: a state is NaN or infinite, or a dense state is 0 and the other one is not.
    """
    parts = batched(windows, stream_tokens)
    dense_states, states = embedded(dense, parts), embedded(network, parts)
    results: dict[str, list[Drift]] = {name: [] for name in windows}
    for index in tqdm(range(len(dense.blocks)), desc="drift", unit="block"):
        local: dict[str, list[Tensor]] = {name: [] for name in windows}
        accumulated: dict[str, list[Tensor]] = {name: [] for name in windows}
        with dense.block(index) as original, network.block(index) as block:
            for (name, _), dense_state, state in zip(parts, dense_states, states, strict=True):
                where = f"drift of {name}, block {index}"
                hidden = dense.taken(dense_state)
                target = dense.run_block(index, original, hidden)
                local[name].append(_distances(network.run_block(index, block, hidden), target, where))
                output = network.run_block(index, block, state)
                accumulated[name].append(_distances(output, target, where))
                # in place: tensors that come and go between others leave holes as large as all states
                dense_state.copy_(target)
                state.copy_(output)
        for name in windows:
            values = torch.cat(local[name]), torch.cat(accumulated[name])
            results[name].append(Drift(*mean_and_error(values[0]), *mean_and_error(values[1])))
    return results


def _distances(states: Tensor, dense: Tensor, where: str) -> Tensor:
    """Median relative squared distance of the tokens of each sequence, ``[sequences]``.

    States are ``[sequences, length, width]``; float64, since squares of large ones overflow what models are run in.
    """
    medians, unusable = [], []
    # one sequence at a time: in float64 a batch would take more than the block that made it
    for one, other in zip(states, dense, strict=True):
        reference = other.double()
        errors, norms = (one.double() - reference).square().sum(-1), reference.square().sum(-1)
        unusable.append(torch.stack([~(errors + norms).isfinite(), (norms == 0) & (errors > 0)]).any(1))
        medians.append(torch.where(norms > 0, errors / norms, 0.0).quantile(0.5))
    # looked at once for all sequences: an accelerator is waited for once
    infinite, vanished = torch.stack(unusable).any(0).tolist()
    if infinite:
        raise FreelunchError(f"{where}: hidden states contain NaN or infinity; try dtype: bfloat16 or float32")
    if vanished:
        raise FreelunchError(f"{where}: the dense state of a token is 0 and the other one is not")
    return torch.stack(medians).cpu()
