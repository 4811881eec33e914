"""LoRA whose update is masked while it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from freelunch.recover.parametrizations.parametrization import LoRA

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MaskLoRA(LoRA):
    """``W + s (B A) * M`` (PERP, arXiv 2312.15230)."""

    def effective(self, weight: Tensor, mask: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return weight + self.scale * (up @ down) * mask


method = MaskLoRA
