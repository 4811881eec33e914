"""Calibration statistics: what criteria need to know of the inputs of every matrix, collected while a block runs.

Matrices that read the same tensor (q/k/v, gate/up) share one accumulation. Sums are kept in float64, so that scores do
not depend on how the calibration set was batched beyond float64's rounding; Gram matrices, which only some criteria
ask for, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from freelunch.pruning.matrix import Statistics

_COPIES = 7
"""Float32 matrices of a Gram matrix' size that there must be room for: itself, damped, its factor, what ADMM makes."""
_PANEL = 4096
"""Columns of a Gram matrix on the CPU that an accelerator computes at a time."""


class Collector:
    """Accumulates statistics of the linear layers of one block, as long as :meth:`watching` is open.

    Args:
        matrices: the linear layers, by name.
        gram: whether to accumulate Gram matrices too.
    """

    def __init__(self, matrices: dict[str, nn.Linear], gram: bool = False) -> None:
        self._matrices, self._with_gram = matrices, gram
        self._leader: dict[str, str] = {}
        self._shared: dict[str, Statistics] = {}
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
        """Statistics by matrix, in the order of their calls; matrices with a common input share them."""
        shared = {
            name: Statistics(each.tokens, each.sums.cpu(), each.squared_norms.cpu(), each.gram)
            for name, each in self._shared.items()
        }
        return {name: shared[leader] for name, leader in self._leader.items()}

    @property
    def leaders(self) -> dict[str, str]:
        """For every matrix, in the order of their calls, the first that reads the same input."""
        return dict(self._leader)

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
        exact = rows.double()  # a variance is a small difference of large sums
        tokens, sums, squares = rows.shape[0], exact.sum(0), exact.square().sum(0)
        if before := self._shared.get(name):
            tokens, sums, squares = before.tokens + tokens, before.sums + sums, before.squared_norms + squares
            gram = before.gram
        else:
            gram = self._room(rows.shape[1], rows.device) if self._with_gram else None
        if gram is not None:
            add_gram(gram, rows)
        self._shared[name] = Statistics(tokens, sums, squares, gram)

    @staticmethod
    def _room(columns: int, device: torch.device) -> Tensor:
        return torch.zeros(columns, columns, device=device if _fits(columns, device) else "cpu")


def on_device(gram: Tensor, device: torch.device) -> Tensor:
    """A Gram matrix on the device if there is room for it and for what is computed from it, else where it is."""
    return gram.to(device) if _fits(gram.shape[0], device) else gram


def _fits(columns: int, device: torch.device) -> bool:
    """Whether an accelerator has room for a Gram matrix and its copies."""
    if device.type != "cuda":
        return True
    return torch.cuda.mem_get_info(device)[0] > _COPIES * 4 * columns**2


def add_gram(gram: Tensor, rows: Tensor) -> None:
    """Add ``X^T X`` of ``rows`` ``[tokens, columns]`` to ``gram``; in panels if that lies on another device."""
    if gram.device == rows.device:
        gram.addmm_(rows.T, rows)
        return
    for start in range(0, gram.shape[0], _PANEL):
        panel = slice(start, start + _PANEL)
        gram[panel] += (rows[:, panel].T @ rows).to(gram.device)
