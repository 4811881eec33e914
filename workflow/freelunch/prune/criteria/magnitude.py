"""Magnitude pruning: small weights matter least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from freelunch.prune.criteria.criterion import Criterion
from freelunch.prune.matrix import Matrix

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Magnitude(Criterion):
    """``S_ij = |W_ij|`` (Han et al. 2015, arXiv 1506.02626)."""

    def score(self, matrix: Matrix) -> Tensor:
        return matrix.weight.abs()


method = Magnitude
