"""Wanda: small weights on quiet inputs matter least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from freelunch.pruning.criteria import CRITERIA, Criterion

if TYPE_CHECKING:
    from torch import Tensor

    from freelunch.pruning.matrix import Matrix


@CRITERIA.register("wanda")
@dataclass(frozen=True)
class Wanda(Criterion):
    """``S_ij = |W_ij| * ||X_j||_2`` (Sun et al. 2023, arXiv 2306.11695)."""

    def score(self, matrix: Matrix) -> Tensor:
        return matrix.weight.abs() * matrix.inputs.squared_norms.sqrt().to(matrix.weight)
