"""What a criterion is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from freelunch.errors import FreelunchError, naming
from freelunch.prune.matrix import Matrix, finite

if TYPE_CHECKING:
    from torch import Tensor

    from freelunch.prune.patterns import NM, Unstructured


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
        with naming(matrix.name):
            found = self.score(matrix)
            if not finite(found):
                raise FreelunchError(f"{type(self).__name__} scores contain NaN or infinity")
        return found

    def prune(self, matrix: Matrix, pattern: Unstructured | NM, pruned: int) -> tuple[Tensor, Tensor]:
        """Boolean mask (True = kept) that prunes ``pruned`` weights, and the weights ``[rows, columns]`` under it.

        Criteria whose scores depend on what was pruned before, or that change weights, override this.
        """
        return pattern.mask(self.scores(matrix), pruned), matrix.weight
