"""LoRA whose update is pruned when it is merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from freelunch.recover.parametrizations.parametrization import LoRA

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LoRAPrune(LoRA):
    """Trains ``W + s B A``, saves ``W + s (B A) * M`` (PERP, arXiv 2312.15230): what is saved computes something else
    than what was trained. Kept to measure by how much.
    """

    exact: ClassVar[bool] = False

    def effective(self, weight: Tensor, mask: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return weight + self.scale * (up @ down)

    def merged(self, weight: Tensor, mask: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return self.effective(weight, mask, down, up) * mask


method = LoRAPrune
