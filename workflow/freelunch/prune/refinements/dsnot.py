"""DSnoT: swap kept and pruned weights of a row until its expected output is that of the dense row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from freelunch.errors import FreelunchError
from freelunch.prune.matrix import Matrix
from freelunch.prune.methods import positive
from freelunch.prune.patterns import NM, Pattern
from freelunch.prune.refinements.refinement import Pruned, Refinement


@dataclass(frozen=True)
class DSnoT(Refinement):
    """Dynamic sparse no training (Zhang et al. 2024, arXiv 2310.08915), from the mean and variance of the inputs.

    The expected error of a row is ``e = sum over pruned j of W_ij E[X_j]``. A cycle revives the pruned weight with the
    largest ``sign(e) W_ij E[X_j] / Var(X_j)``, and prunes the kept one with the lowest ``|W_ij| ||X_j||`` among those
    whose loss moves ``e`` towards zero too; for N:M both in one group. A row is done after ``cycles`` swaps, when
    ``|e|`` is at most ``threshold``, or when the next swap would not bring ``|e|`` down. Starts from the dense
    weights: those updated for another mask no longer fit.
    """

    structured: ClassVar[bool] = False
    first: ClassVar[bool] = True
    cycles: int = 50
    threshold: float = 0.1

    def __post_init__(self) -> None:
        positive(cycles=self.cycles)
        if self.threshold < 0:
            raise FreelunchError(f"threshold must be at least 0, not {self.threshold:g}")

    def refine(self, matrix: Matrix, pruned: Pruned, pattern: Pattern) -> Pruned:
        import torch

        weight, mask = matrix.weight, pruned.mask.clone()
        rows, columns = weight.shape
        size = pattern.of if isinstance(pattern, NM) else columns
        contribution = weight * matrix.inputs.means.to(weight)
        variances = matrix.inputs.variances.to(weight)
        growth = contribution / variances.clamp(min=torch.finfo(weight.dtype).tiny)
        growth[:, variances == 0] = 0  # a constant input is the bias' business
        importance = weight.abs() * matrix.inputs.squared_norms.sqrt().to(weight)
        error = (contribution * ~mask).sum(1)
        active = torch.arange(rows, device=weight.device)
        for _ in range(self.cycles):
            active = active[error[active].abs() > self.threshold]
            if not len(active):
                break
            sign, kept = error[active].sign().unsqueeze(1), mask[active]
            gain = (sign * growth[active]).masked_fill(kept, -torch.inf)
            helps = kept & (sign * contribution[active] < 0)
            price = importance[active].masked_fill(~helps, torch.inf)
            grown, grow = gain.view(len(active), -1, size).max(2)
            lost, drop = price.view(len(active), -1, size).min(2)
            best, group = grown.masked_fill(lost.isinf(), -torch.inf).max(1)
            offset, at = group * size, group.unsqueeze(1)
            grow, drop = grow.gather(1, at).squeeze(1) + offset, drop.gather(1, at).squeeze(1) + offset
            after = error[active] - contribution[active, grow] + contribution[active, drop]
            better = (best > 0) & (after.abs() < error[active].abs())
            active, grow, drop = active[better], grow[better], drop[better]
            mask[active, grow], mask[active, drop] = True, False
            error[active] = after[better]
        return replace(pruned, mask=mask, weight=weight)


method = DSnoT
