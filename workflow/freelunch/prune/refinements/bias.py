"""Bias compensation: what the pruned inputs gave on average is added as a constant."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from freelunch.prune.matrix import Matrix
from freelunch.prune.patterns import Pattern
from freelunch.prune.refinements.refinement import Pruned, Refinement


@dataclass(frozen=True)
class Bias(Refinement):
    """``b_i += sum_j (1 - M_ij) W_ij E[X_j]`` with the dense weights ``W`` (FLAP, An et al. 2023, arXiv 2312.11983).

    Weights that stay may have been changed; the mean of what they now give is compensated too. A layer without a bias
    gets one. Outputs all of whose weights are pruned are gone, and stay so.
    """

    last: ClassVar[bool] = True

    def refine(self, matrix: Matrix, pruned: Pruned, pattern: Pattern) -> Pruned:
        lost = matrix.weight - pruned.weight * pruned.mask
        change = (lost @ matrix.inputs.means.to(lost)) * pruned.mask.any(1)
        if not bool(change.any()):
            return pruned  # nothing to make up for, and no reason for a bias where there is none
        return replace(pruned, bias=change if matrix.bias is None else matrix.bias + change)


method = Bias
