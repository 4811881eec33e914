"""The best weights for a mask: least squares on the kept weights of every row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from freelunch.prune.matrix import Matrix
from freelunch.prune.methods import positive
from freelunch.prune.patterns import Pattern
from freelunch.prune.refinements.refinement import Pruned, Refinement

_CHUNK = 1 << 24
"""Entries of the systems that are solved at a time: bounds memory to a few times 64 MiB, or to one system."""


@dataclass(frozen=True)
class Exact(Refinement):
    """``min_V ||X W^T - X (M * V)^T||^2``: with kept ``S`` and pruned ``P``, ``V_S = W_S + H_SS^-1 H_SP W_P`` per row.

    One Cholesky factorisation per row, of as many columns as it keeps: for models whose rows have some thousand
    inputs use ``admm``. ``H`` gets ``damping`` times its mean diagonal.
    """

    needs_gram: ClassVar[bool] = True
    changes_weights: ClassVar[bool] = True
    damping: float = 0.01

    def __post_init__(self) -> None:
        positive(damping=self.damping)

    def operations(self, rows: int, columns: int, kept: float) -> float:
        return rows * (kept * columns) ** 3 / 3 + 2 * rows * columns**2

    def memory(self, rows: int, columns: int, kept: float) -> float:
        return 4 * (3 * max(_CHUNK, (kept * columns) ** 2) + columns**2 + 3 * rows * columns)

    def refine(self, matrix: Matrix, pruned: Pruned, pattern: Pattern) -> Pruned:
        from freelunch.prune.hessian import masked_least_squares, solvable

        assert matrix.inputs.gram is not None
        hessian = solvable(matrix.inputs.gram, self.damping).to(matrix.weight.device)
        found = masked_least_squares(matrix.weight, pruned.mask, hessian, _CHUNK)
        return replace(pruned, weight=found)


method = Exact
