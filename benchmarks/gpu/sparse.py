"""2:4 products of torch.sparse against dense ones, by shape and number of tokens: their times and their errors.

The matrices are those of the blocks of an 8B and of a 72B. Errors are those of the outputs, relative to products of the
same numbers in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.sparse import SparseSemiStructuredTensorCUTLASS, to_sparse_semi_structured

from freelunch.plan.facts import Facts

from .blocks import PATTERN, SHAPES
from .cells import Cell, Row, now, run_cells, table

TOKENS = (1, 16, 128, 1024, 8192)
ROLES = ("q", "o", "up", "down")
PACKED: dict[str, Callable[[Tensor], Any]] = {
    "default": to_sparse_semi_structured,  # cuSPARSELt
    "cutlass": SparseSemiStructuredTensorCUTLASS.from_dense,
}
"""How weights are packed, by the library that computes with them."""
TIMED = 0.005
"""Seconds of products that follow each other and are timed together."""


def measure(
    device: torch.device, smallest: bool, seconds: float = 20.0, keep: Callable[[dict[str, Any]], object] = len
) -> dict[str, Any]:
    """All rows that there is time for, ``keep`` given those so far; where the device has no such products, a row that
    says so.
    """
    if device.type != "cuda":
        return {"rows": [{"left out": f"torch has no 2:4 products on a device of the kind {device.type}"}]}
    if torch.cuda.get_device_capability(device) < (8, 0):
        return {"rows": [{"left out": f"{torch.cuda.get_device_name(device)} has no 2:4 products"}]}
    tokens = TOKENS[:2] if smallest else TOKENS
    cells = _cells(device, tokens, SHAPES)
    return {"rows": run_cells(cells, device, seconds, lambda rows: keep({"rows": rows}))}


def lines(result: Mapping[str, Any]) -> list[str]:
    """Of each matrix and library, by number of tokens: how much faster sparse products are, and all errors."""
    shown = [
        row | {
            "dense µs": _micro(row.get("dense_seconds")), "2:4 µs": _micro(row.get("sparse_seconds")),
            "faster": row.get("ratio"), "dense error": row.get("dense_error"), "2:4 error": row.get("sparse_error"),
        }
        for row in result["rows"]
    ]  # fmt: skip
    columns = {"dense µs": ".1f", "2:4 µs": ".1f", "faster": ".2f", "dense error": ".1e", "2:4 error": ".1e"}
    found = table(shown, ("matrix", "library", "tokens"), columns)
    return [*found, "faster: time of the dense product over that of the 2:4 one; errors: relative, against float32"]


def _micro(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e6


class _Product:
    """A matrix of a block with the pattern's zeros, dense and packed; made when it is looked at."""

    def __init__(self, rows: int, columns: int, device: torch.device, pack: Callable[[Tensor], Any]) -> None:
        self._shape, self._device, self._pack = (rows, columns), device, pack

    @cached_property
    def weight(self) -> Tensor:
        weight = torch.randn(self._shape, device=self._device) / self._shape[1] ** 0.5
        mask = PATTERN.mask(weight.abs(), weight.numel() // 2)
        sparse: Tensor = (weight * mask).bfloat16()
        return sparse

    @cached_property
    def packed(self) -> Tensor:
        packed: Tensor = self._pack(self.weight)
        return packed

    @torch.no_grad()
    def row(self, tokens: int) -> Row:
        """Times and errors of the products with so many tokens."""
        states = torch.randn(tokens, self._shape[1], device=self._device).bfloat16()
        products = {"dense": partial(linear, states, self.weight), "sparse": partial(linear, states, self.packed)}
        exact = linear(states.float(), self.weight.float())
        errors = {f"{kind}_error": difference(product(), exact) for kind, product in products.items()}
        times = {kind: seconds_of(product, self._device) for kind, product in products.items()}
        return {
            **{f"{kind}_seconds": seconds for kind, seconds in times.items()},
            "ratio": times["dense"] / times["sparse"],
            **errors,
        }

    def close(self) -> None:
        """Let go of the matrix."""
        self.__dict__.pop("weight", None)
        self.__dict__.pop("packed", None)


def _cells(device: torch.device, tokens: tuple[int, ...], shapes: Mapping[str, Facts]) -> Iterator[Cell]:
    for library, pack in PACKED.items():
        if library == "cutlass" and device.type == "cuda" and torch.cuda.get_device_capability(device)[0] != 8:
            continue  # torch has these kernels for Ampere and Ada alone
        for shape, facts in shapes.items():
            for role in ROLES:
                product = _Product(*facts.matrices[role], device, pack)
                for count in tokens:
                    label = {"matrix": f"{shape} {role}", "library": library, "tokens": count}
                    yield Cell(label, partial(_rows, product, count), 0.5)
                product.close()


def _rows(product: _Product, tokens: int) -> Iterator[Row]:
    yield product.row(tokens)


def difference(output: Tensor, exact: Tensor) -> float:
    """``||output - exact|| / ||exact||``."""
    return float((output.float() - exact).norm() / exact.norm())


def seconds_of(product: Callable[[], object], device: torch.device, times: int = 5) -> float:
    """Of one of several products in a row, with what it takes to ask for them: the fastest of some such rows."""
    product()
    started = now(device)
    product()
    repeats = min(100, max(1, round(TIMED / (now(device) - started))))
    best = float("inf")
    for _ in range(times):
        started = now(device)
        for _ in range(repeats):
            product()
        best = min(best, (now(device) - started) / repeats)
    return best
