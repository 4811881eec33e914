"""Pruning criteria, one small class each, in a module of the criterion's name.

To add one, write ``criteria/<name>.py`` with a class that is registered under that name; nothing else knows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from freelunch.errors import FreelunchError, naming
from freelunch.pruning.methods import Methods

if TYPE_CHECKING:
    from torch import Tensor

    from freelunch.pruning.matrix import Matrix
    from freelunch.pruning.patterns import NM, Unstructured


@dataclass(frozen=True)
class Criterion:
    """Scores the weights of one matrix; the lowest are pruned. Fields are settings, written ``name(field=value)``."""

    needs_gram: ClassVar[bool] = False
    """Whether it looks at the Gram matrix of the inputs."""
    changes_weights: ClassVar[bool] = False
    """Whether it changes the weights that stay."""

    def score(self, matrix: Matrix) -> Tensor:
        """Scores ``[rows, columns]`` of a matrix."""
        raise NotImplementedError

    def scores(self, matrix: Matrix) -> Tensor:
        """:meth:`score`, checked.

        Raises:
            FreelunchError: a score is not finite, or cannot be had; names the matrix.
        """
        from freelunch.pruning.matrix import finite

        with naming(matrix.name):
            scores = self.score(matrix)
            if not finite(scores):
                raise FreelunchError(f"{type(self).__name__} scores contain NaN or infinity")
        return scores

    def prune(self, matrix: Matrix, pattern: Unstructured | NM, pruned: int) -> tuple[Tensor, Tensor]:
        """Boolean mask (True = kept) that prunes ``pruned`` weights, and the weights ``[rows, columns]`` under it.

        Criteria whose scores depend on what was pruned before, or that change weights, override this.
        """
        return pattern.mask(self.scores(matrix), pruned), matrix.weight


CRITERIA: Methods[Criterion] = Methods("criterion", Path(__file__).parent, __name__)
parse_criterion = CRITERIA.parse
"""The criterion that a text such as ``wanda`` or ``ria(alpha=1)`` stands for."""
