"""Every matrix loses the same fraction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from freelunch.prune.allocations.allocation import Allocation
from freelunch.prune.matrix import Matrices


@dataclass(frozen=True)
class Uniform(Allocation):
    """The pattern's own sparsity everywhere."""

    by_block: ClassVar[bool] = True

    def targets(self, matrices: Matrices, pruned: float) -> Mapping[str, float]:
        total = sum(matrices.sizes.values())
        return {name: pruned * size / total for name, size in matrices.sizes.items()}


method = Uniform
