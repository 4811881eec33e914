"""RIA: weights that are small beside those of their row and column, on quiet inputs, matter least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from freelunch.pruning.criteria import CRITERIA, Criterion
from freelunch.pruning.methods import positive

if TYPE_CHECKING:
    from torch import Tensor

    from freelunch.pruning.matrix import Matrix


@CRITERIA.register("ria")
@dataclass(frozen=True)
class RIA(Criterion):
    """``S_ij = (|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) * ||X_j||_2^alpha`` (Zhang et al. 2024, ICLR).

    The relative importance keeps whole rows or columns from being pruned away; ``alpha`` damps loud inputs.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        positive(alpha=self.alpha)

    def score(self, matrix: Matrix) -> Tensor:
        size = matrix.weight.abs()
        # a row or column of zeros has no share to give: its scores are 0, not 0 / 0
        rows, columns = (size.sum(side, keepdim=True).clamp(min=1e-30) for side in (1, 0))
        return (size / columns + size / rows) * matrix.inputs.squared_norms.pow(self.alpha / 2).to(size)
