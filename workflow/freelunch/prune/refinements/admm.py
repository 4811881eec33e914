"""Nearly the best weights for a mask, at the cost of some matrix products whatever the width."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from freelunch.prune.matrix import Matrix
from freelunch.prune.methods import positive
from freelunch.prune.patterns import Pattern
from freelunch.prune.refinements.refinement import Pruned, Refinement


@dataclass(frozen=True)
class ADMM(Refinement):
    """``min_V ||X W^T - X (M * V)^T||^2`` by the alternating direction method of multipliers (Boza 2024,
    arXiv 2401.02938).

    ``V = (W H + rho (Z - U)) (H + rho)^-1``, ``Z = M * (V + U)``, ``U = U + V - Z``; columns are scaled by their norms
    first, so that ``rho`` is in units of the mean of ``H``'s diagonal. Starts from the weights it is given and returns
    the last ``Z``.
    """

    needs_gram: ClassVar[bool] = True
    changes_weights: ClassVar[bool] = True
    iterations: int = 20
    rho: float = 1.0
    damping: float = 0.01

    def __post_init__(self) -> None:
        positive(iterations=self.iterations, rho=self.rho, damping=self.damping)

    def operations(self, rows: int, columns: int, kept: float) -> float:
        return 2 * (self.iterations + 1) * rows * columns**2 + 2 * columns**3

    def memory(self, rows: int, columns: int, kept: float) -> float:
        return 4 * (3 * columns**2 + 4 * rows * columns)

    def refine(self, matrix: Matrix, pruned: Pruned, pattern: Pattern) -> Pruned:
        import torch

        from freelunch.prune.hessian import factorised, solvable

        gram = matrix.inputs.gram
        assert gram is not None
        hessian = solvable(gram, self.damping)
        scale = hessian.diagonal().sqrt()
        hessian = (hessian / scale / scale.unsqueeze(1)).to(matrix.weight.device)
        scale = scale.to(matrix.weight.device)
        hessian_rho = hessian + self.rho * torch.eye(len(scale), device=hessian.device)
        inverse = torch.cholesky_inverse(factorised(hessian_rho.unsqueeze(0))[0])
        target = (matrix.weight * scale) @ hessian
        kept = pruned.weight * scale * pruned.mask
        duals = torch.zeros_like(kept)
        for _ in range(self.iterations):
            free = (target + self.rho * (kept - duals)) @ inverse
            kept = (free + duals) * pruned.mask
            duals += free - kept
        return replace(pruned, weight=kept / scale)


method = ADMM
