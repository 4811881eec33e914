"""A low-rank matrix of scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from freelunch.recover.parametrizations.parametrization import LowRank

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class ScaleLoRA(LowRank):
    """``W * (B A)``, where ``B A`` starts as ones (PERP, arXiv 2312.15230).

    The first rank is ones in both factors, the others start as LoRA does. If all ranks started alike, as in the
    official code, their gradients would be alike too, and the product would stay of rank one.
    """

    def factors(self, rows: int, columns: int, generator: Generator) -> tuple[Tensor, Tensor]:
        down, up = super().factors(rows, columns, generator)
        down[0], up[:, 0] = 1, 1
        return down, up

    def effective(self, weight: Tensor, mask: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return weight * (up @ down)


method = ScaleLoRA
