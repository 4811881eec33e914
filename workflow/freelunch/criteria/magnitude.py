"""Magnitude pruning: small weights matter least."""

from __future__ import annotations

from torch import Tensor

from ..statistics import Statistics


class Magnitude:
    """``S_ij = |W_ij|`` (Han et al. 2015, arXiv 1506.02626)."""

    def score(self, weight: Tensor, statistics: Statistics) -> Tensor:
        return weight.abs()


criterion = Magnitude()
