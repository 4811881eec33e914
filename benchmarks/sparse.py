"""2:4 products of torch.sparse against dense ones, by shape: where a sparse model is faster, and where it is slower.

Needs an accelerator of NVIDIA's Ampere or later; elsewhere torch has no kernels for the pattern.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.sparse import to_sparse_semi_structured

from freelunch.device import choose

from .blocks import SHAPES

TOKENS = (1, 16, 128, 1024, 8192)


def main() -> None:
    """Run the benchmark and print it."""
    device = choose("auto")
    if device.type != "cuda" or torch.cuda.get_device_capability() < (8, 0):
        print("left out: there is no accelerator with sparse products here\n")
        return
    print(
        f"{torch.cuda.get_device_name()}, bfloat16: seconds of a dense product over those of a 2:4 one (over 1: faster)"
    )
    print(f"{'matrix of':>12} {'rows':>7} {'columns':>8}" + "".join(f"{f'{tokens} tokens':>13}" for tokens in TOKENS))
    for shape, facts in SHAPES.items():
        for role in ("q", "o", "up", "down"):
            rows, columns = facts.matrices[role]
            ratios = _ratios(rows, columns)
            print(f"{f'{shape} {role}':>12} {rows:7} {columns:8}" + "".join(f"{ratio:13.2f}" for ratio in ratios))
    print()


def _ratios(rows: int, columns: int) -> list[float]:
    weight = torch.randn(rows, columns, dtype=torch.bfloat16, device="cuda") / columns**0.5
    weight *= two_of_four(weight)
    packed = to_sparse_semi_structured(weight)
    found = []
    for tokens in TOKENS:
        states = torch.randn(tokens, columns, dtype=torch.bfloat16, device="cuda")
        error = (linear(states, packed) - linear(states, weight)).float().norm() / linear(states, weight).float().norm()
        assert error < 0.01, f"{rows} x {columns}: the sparse product is wrong by {error:.1e}"
        found.append(_seconds(partial(linear, states, weight)) / _seconds(partial(linear, states, packed)))
    return found


def two_of_four(weight: Tensor) -> Tensor:
    """Mask of the two largest of every four weights in a row."""
    groups = weight.abs().view(*weight.shape[:-1], -1, 4)
    return torch.zeros_like(groups).scatter_(-1, groups.topk(2, dim=-1).indices, 1).view_as(weight)


def _seconds(product: Callable[[], Tensor], repeats: int = 50) -> float:
    """Of one product, the fastest of several."""
    best = float("inf")
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        product()
        end.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(end) / 1000)
    return best
