"""LAMP: one global threshold on magnitudes, each measured against the larger weights of its own matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from freelunch.prune.allocations.allocation import Allocation
from freelunch.prune.matrix import Matrices

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LAMP(Allocation):
    """Layer-adaptive magnitude pruning (Lee et al. 2021, arXiv 2010.07611).

    Sorted by magnitude, the score of a weight is ``W_u^2 / sum of W_v^2 over v >= u``; the lowest of all matrices go.
    Only how many that are in each matrix is used here; which ones is the criterion's.
    """

    def targets(self, matrices: Matrices, pruned: float) -> Mapping[str, float]:
        from freelunch.prune.selection import count_lowest

        return count_lowest(lambda: ((matrix.name, lamp_scores(matrix.weight)) for matrix in matrices), int(pruned))


def lamp_scores(weight: Tensor) -> Tensor:
    """LAMP scores of a weight tensor, in ascending order of its magnitudes."""
    # summed up on the CPU: a GPU adds in another order every time, and scores decide what is pruned
    squares = weight.flatten().double().square().sort().values.cpu()
    return squares / squares.flip(0).cumsum(0).flip(0).clamp(min=1e-300)


method = LAMP
