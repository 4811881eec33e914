"""Given: a sparsity for every block, by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from freelunch.errors import FreelunchError
from freelunch.prune.allocations.allocation import Allocation
from freelunch.prune.matrix import Matrices
from freelunch.prune.patterns import NM, Pattern

_TOLERANCE = 0.0005
"""How far the mean may be from the pattern's sparsity: what rounding to tenths of a percent can bring about."""


@dataclass(frozen=True)
class Given(Allocation):
    """``given(40%, 45%, 65%)``: the sparsity of each block in turn. Their mean is the pattern's sparsity."""

    by_block: ClassVar[bool] = True
    sparsities: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for sparsity in self.sparsities:
            if not 0 <= sparsity < 1:
                raise FreelunchError(f"a sparsity must be at least 0% and below 100%, not {100 * sparsity:g}%")

    def check(self, blocks: int, pattern: Pattern) -> None:
        sparsity = pattern.sparsity
        if len(self.sparsities) != blocks:
            raise FreelunchError(f"it lists {len(self.sparsities)} sparsities, the model has {blocks} blocks")
        mean = sum(self.sparsities) / blocks
        if abs(mean - sparsity) > _TOLERANCE:
            raise FreelunchError(f"its sparsities have the mean {100 * mean:.4g}%, the pattern {100 * sparsity:.4g}%")
        if isinstance(pattern, NM):
            for found in self.sparsities:
                dropped = found * pattern.of
                if abs(dropped - round(dropped)) > 1e-6 or round(dropped) == pattern.of:
                    raise FreelunchError(f"{100 * found:.4g}% of every {pattern.of} inputs is no whole number to prune")

    def targets(self, matrices: Matrices, pruned: float) -> Mapping[str, float]:
        order = list(dict.fromkeys(matrices.blocks.values()))
        given = dict(zip(order, self.sparsities, strict=True))
        return {name: given[matrices.blocks[name]] * size for name, size in matrices.sizes.items()}


method = Given
