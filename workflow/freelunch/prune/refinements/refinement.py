"""What a refinement is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from freelunch.prune.matrix import Matrix
from freelunch.prune.patterns import Pattern

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pruned:
    """A pruned matrix.

    Attributes:
        mask: ``[rows, columns]``, True = kept.
        weight: ``[rows, columns]`` float32; what it holds where pruned does not matter.
        bias: ``[rows]`` float32, if the layer has one by now.
    """

    mask: Tensor
    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Refinement:
    """Makes a pruned matrix better. Fields are settings, written ``name(field=value)``."""

    needs_gram: ClassVar[bool] = False
    """Whether it looks at the Gram matrix of the inputs."""
    changes_weights: ClassVar[bool] = False
    """Whether it changes the weights that stay."""
    structured: ClassVar[bool] = True
    """Whether it leaves structured patterns as they are."""
    first: ClassVar[bool] = False
    """Whether it takes back what came before it."""
    last: ClassVar[bool] = False
    """Whether what comes after it would make it wrong."""

    def operations(self, rows: int, columns: int, kept: float) -> float:
        """Arithmetic operations on a matrix of whose columns the share ``kept`` stays; those that count."""
        return 0.0

    def memory(self, rows: int, columns: int, kept: float) -> float:
        """Bytes that it takes beside the matrix and its Gram matrix."""
        return 0.0

    def refine(self, matrix: Matrix, pruned: Pruned, pattern: Pattern) -> Pruned:
        """A better mask that fits the pattern as well, or better weights or a better bias under the mask."""
        raise NotImplementedError
