"""Wanda: small weights on quiet inputs matter least."""

from __future__ import annotations

from torch import Tensor

from ..statistics import Statistics


class Wanda:
    """``S_ij = |W_ij| * ||X_j||_2`` (Sun et al. 2023, arXiv 2306.11695)."""

    def score(self, weight: Tensor, statistics: Statistics) -> Tensor:
        return weight.abs() * statistics.squared_norms.sqrt().to(weight)


criterion = Wanda()
