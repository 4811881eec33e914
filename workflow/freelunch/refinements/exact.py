"""The best weights for a mask: least squares on the kept weights of every row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..matrix import Matrix
from ..methods import positive
from ..patterns import Pattern, Structured
from .refinement import Pruned, Refinement

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
        import torch

        from ..hessian import cholesky, damped, factorised

        gram = matrix.inputs.gram
        assert gram is not None
        weight, mask = matrix.weight, pruned.mask
        # found once for the whole matrix: if all of H can be factorised, so can its parts, but for rounding
        hessian = damped(gram, cholesky(gram, self.damping)[1]).to(weight.device)
        if isinstance(pattern, Structured):
            # all rows that stay keep the same columns: one system for all of them
            columns = mask.any(0)
            lower = factorised(hessian[columns][:, columns].unsqueeze(0))[0]
            change = torch.cholesky_solve((weight[:, ~columns] @ hessian[~columns][:, columns]).T, lower).T
            found = weight.clone()
            found[:, columns] += change
            return replace(pruned, weight=found)
        found = torch.zeros_like(weight)
        kept = mask.sum(1)
        most = int(kept.max())
        for rows in torch.arange(len(weight), device=weight.device).split(max(1, _CHUNK // max(1, most) ** 2)):
            some = mask[rows]
            size = int(kept[rows].max())
            # kept columns first, in order; rows that keep fewer are filled up with pruned ones that read as identity
            columns = (~some).to(torch.uint8).sort(dim=1, stable=True).indices[:, :size]
            inside = some.gather(1, columns)
            systems = hessian[columns.unsqueeze(2), columns.unsqueeze(1)]
            if not bool(inside.all()):
                systems *= inside.unsqueeze(2) & inside.unsqueeze(1)
                systems.diagonal(dim1=1, dim2=2).add_((~inside).to(systems))
            missing = (weight[rows] * ~some) @ hessian
            change = (missing.gather(1, columns) * inside).unsqueeze(2)
            lower = factorised(systems)
            for factor, upper in ((lower, False), (lower.mT, True)):
                change = torch.linalg.solve_triangular(factor, change, upper=upper)
            found[rows] = (weight[rows] * some).scatter_add(1, columns, change.squeeze(2) * inside)
        return replace(pruned, weight=found)


method = Exact
