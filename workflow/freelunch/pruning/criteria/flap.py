"""FLAP: inputs that hardly fluctuate can be replaced by their mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from freelunch.pruning.criteria import CRITERIA, Criterion

if TYPE_CHECKING:
    from torch import Tensor

    from freelunch.pruning.matrix import Matrix


@CRITERIA.register("flap")
@dataclass(frozen=True)
class FLAP(Criterion):
    """``S_ij = Var(X_j) * W_ij^2``, the weighted input feature variance (An et al. 2023, arXiv 2312.11983).

    Summed over rows it is the paper's WIFV of input ``j``. The method of the paper is this criterion with a pattern
    such as ``20% structured global`` and the refinement ``bias``.
    """

    def score(self, matrix: Matrix) -> Tensor:
        return matrix.weight.square() * matrix.inputs.variances.to(matrix.weight)
