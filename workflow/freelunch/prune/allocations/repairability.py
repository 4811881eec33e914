"""Repairability: where channelwise scales undo little of what pruning does, more weights stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from freelunch.prune.allocations.allocation import Allocation, capped
from freelunch.prune.matrix import Matrices, Matrix


@dataclass(frozen=True)
class Repairability(Allocation):
    """Densities in proportion to relative repairability, after arXiv 2605.25508 (its abstract alone is public).

    The residual over the raw distortion of a matrix' outputs is measured with its smallest weights pruned, as many as a
    uniform allocation would; a density is at most 1, and what a matrix cannot take is redistributed. That densities are
    proportional to the ratio is this package's reading: the abstract says that it guides the allocation, not how.
    """

    needs_gram: ClassVar[bool] = True

    def targets(self, matrices: Matrices, pruned: float) -> Mapping[str, float]:
        sizes = matrices.sizes
        sparsity = pruned / sum(sizes.values())
        scores = {matrix.name: sizes[matrix.name] * _ratio(matrix, sparsity) for matrix in matrices}
        kept = capped(scores, sizes, sum(sizes.values()) - pruned, 1.0)
        return {name: size - kept[name] for name, size in sizes.items()}


def _ratio(matrix: Matrix, sparsity: float) -> float:
    from freelunch.prune.selection import drop_lowest
    from freelunch.recover.repair import moments, relative_repairability

    magnitudes = matrix.weight.abs().reshape(1, -1)
    mask = drop_lowest(magnitudes, round(sparsity * magnitudes.numel())).view_as(matrix.weight)
    return relative_repairability(moments(matrix.weight, matrix.weight * mask, matrix.inputs))


method = Repairability
