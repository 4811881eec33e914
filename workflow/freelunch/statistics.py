"""Calibration statistics: what criteria need to know of the inputs of every matrix.

Matrices that read the same tensor (q/k/v, gate/up) share one accumulation. Sums are kept in float64, so that scores do
not depend on how the calibration set was batched beyond float64's rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Statistics:
    """Statistics of the inputs of one matrix.

    Attributes:
        tokens: number of input vectors seen.
        squared_norms: ``[columns]`` float64, the sum over tokens of each input's square, ``||X_j||^2``.
    """

    tokens: int
    squared_norms: Tensor


class Collector:
    """Accumulates statistics of the linear layers of one block, as long as :meth:`watching` is open.

    Args:
        matrices: the linear layers, by name.
    """

    def __init__(self, matrices: dict[str, nn.Linear]) -> None:
        self._matrices = matrices
        self._leader: dict[str, str] = {}
        self._sums: dict[str, Tensor] = {}
        self._tokens: dict[str, int] = {}
        self._seen: list[tuple[Tensor, str]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks are in place while the context is open; run whole forward passes of the block inside."""
        handles = [module.register_forward_pre_hook(self._hook(name)) for name, module in self._matrices.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._seen.clear()

    def results(self) -> dict[str, Statistics]:
        """Statistics by matrix; matrices with a common input share tensors."""
        return {name: Statistics(self._tokens[at], self._sums[at]) for name, at in sorted(self._leader.items())}

    @property
    def leaders(self) -> dict[str, str]:
        """For every matrix, the one whose accumulation it shares (itself, if it is the first)."""
        return dict(sorted(self._leader.items()))

    def _hook(self, name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if name in self._leader:
                self._seen.clear()
            else:
                # inputs are held while the first pass is under way: an address is only comparable while it is alive
                same = (leader for tensor, leader in self._seen if tensor is inputs[0])
                self._leader[name] = next(same, name)
                self._seen.append((inputs[0], name))
            if self._leader[name] == name:
                self._add(name, inputs[0])

        return hook

    @torch.no_grad()
    def _add(self, name: str, inputs: Tensor) -> None:
        rows = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        total = rows.square().sum(0, dtype=torch.float64).cpu()
        self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._tokens[name] = self._tokens.get(name, 0) + rows.shape[0]
