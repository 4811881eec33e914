"""Random pruning: what every other criterion must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from freelunch.pruning.criteria import CRITERIA, Criterion

if TYPE_CHECKING:
    from torch import Tensor

    from freelunch.pruning.matrix import Matrix


@CRITERIA.register("random")
@dataclass(frozen=True)
class Random(Criterion):
    """``S_ij`` uniform in [0, 1), from the run's seed and the matrix' name."""

    def score(self, matrix: Matrix) -> Tensor:
        scores = matrix.weight.new_empty(matrix.weight.shape, device="cpu")
        return scores.uniform_(generator=matrix.generator()).to(matrix.weight.device)
