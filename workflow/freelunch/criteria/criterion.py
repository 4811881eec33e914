"""What a criterion is."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..statistics import Statistics


class Criterion(Protocol):
    """Scores the weights of one matrix; the lowest are pruned."""

    def score(self, weight: Tensor, statistics: Statistics) -> Tensor:
        """Scores ``[rows, columns]`` of a float32 weight ``[rows = outputs, columns = inputs]``."""
        ...
