"""Erdős–Rényi kernel: the density of a matrix is inverse to its size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from freelunch.errors import FreelunchError
from freelunch.prune.allocations.allocation import Allocation, capped
from freelunch.prune.matrix import Matrices
from freelunch.prune.patterns import Pattern


@dataclass(frozen=True)
class ERK(Allocation):
    """Kept weights in proportion to ``rows + columns`` (for convolutions all four sides; Evci et al. 2020,
    arXiv 1911.11134).

    A matrix that would keep more than it has stays dense, the one that overflows most first, and the rest is
    redistributed. ``cap`` bounds the density of every matrix instead of 1.
    """

    cap: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.cap <= 1:
            raise FreelunchError(f"cap is a density, above 0 and at most 1, not {self.cap:g}")

    def check(self, blocks: int, pattern: Pattern) -> None:
        kept = 1 - pattern.sparsity
        if kept > self.cap:
            raise FreelunchError(f"no matrix may keep more than {self.cap:.4g}, but {kept:.4g} must be kept")

    def targets(self, matrices: Matrices, pruned: float) -> Mapping[str, float]:
        sizes = matrices.sizes
        scores = {name: sum(shape) for name, shape in matrices.shapes.items()}
        kept = capped(scores, sizes, sum(sizes.values()) - pruned, self.cap)
        return {name: size - kept[name] for name, size in sizes.items()}


method = ERK
