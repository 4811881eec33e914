"""Magnitude pruning: small weights matter least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from freelunch.pruning.criteria import CRITERIA, Criterion

if TYPE_CHECKING:
    from torch import Tensor

    from freelunch.pruning.matrix import Matrix


@CRITERIA.register("magnitude")
@dataclass(frozen=True)
class Magnitude(Criterion):
    """``S_ij = |W_ij|`` (Han et al. 2015, arXiv 1506.02626)."""

    def score(self, matrix: Matrix) -> Tensor:
        return matrix.weight.abs()
