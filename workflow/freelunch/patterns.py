"""Sparsity patterns: which weights of a score matrix stay.

A pattern turns scores (rows = outputs, columns = inputs) into a boolean mask with an exact number of kept
weights. In ``config.yaml`` it is one string: ``50%`` (per row), ``50% per matrix``, ``2:4`` (keep 2 of 4).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING

from .errors import FreelunchError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Unstructured:
    """Prune a fraction of the weights of every row (``group="row"``) or of the whole matrix (``group="matrix"``)."""

    sparsity: float
    group: str = "row"

    def __str__(self) -> str:
        percent = f"{_percent(self.sparsity)}%"
        return percent if self.group == "row" else f"{percent} per matrix"

    @property
    def slug(self) -> str:
        return _percent(self.sparsity) + ("" if self.group == "row" else "-matrix")

    def pruned(self, rows: int, columns: int) -> int:
        """Number of pruned weights of a ``rows x columns`` matrix: half-up rounding, per row or once per matrix."""
        return rows * self._count(columns) if self.group == "row" else self._count(rows * columns)

    def check(self, rows: int, columns: int, name: str) -> None:
        """Every matrix has rows to prune from; nothing to refuse."""

    def mask(self, scores: Tensor) -> Tensor:
        """Boolean mask of ``scores``' shape, True = kept; the lowest scores go, ties by position."""
        rows, columns = scores.shape
        flat = scores if self.group == "row" else scores.reshape(1, -1)
        return _drop_lowest(flat, self._count(flat.shape[1])).reshape(rows, columns)

    def _count(self, size: int) -> int:
        # str() gives the decimal the user wrote: 0.7 * 10 must be 7, not 6.999...
        return math.floor(Fraction(str(self.sparsity)) * size + Fraction(1, 2))


@dataclass(frozen=True)
class NM:
    """Keep the ``keep`` highest scores of every ``of`` consecutive inputs (2:4 keeps 2 of 4)."""

    keep: int
    of: int

    def __str__(self) -> str:
        return f"{self.keep}:{self.of}"

    @property
    def slug(self) -> str:
        return f"{self.keep}of{self.of}"

    @property
    def sparsity(self) -> float:
        return 1 - self.keep / self.of

    def pruned(self, rows: int, columns: int) -> int:
        """Number of pruned weights of a ``rows x columns`` matrix."""
        return rows * columns // self.of * (self.of - self.keep)

    def check(self, rows: int, columns: int, name: str) -> None:
        """Raise if the input width is not a multiple of the group."""
        if columns % self.of:
            raise FreelunchError(f"pattern {self}: the {columns} inputs of {name} are not a multiple of {self.of}")

    def mask(self, scores: Tensor) -> Tensor:
        """Boolean mask of ``scores``' shape, True = kept; the lowest scores of each group go, ties by position."""
        rows, columns = scores.shape
        self.check(rows, columns, f"a {rows} x {columns} matrix")
        groups = scores.reshape(-1, self.of)
        return _drop_lowest(groups, self.of - self.keep).reshape(rows, columns)


Pattern = Unstructured | NM


def _percent(fraction: float) -> str:
    """Percent as the user may write it: all digits, no exponent."""
    return f"{(100 * Decimal(str(fraction))).normalize():f}"


def _drop_lowest(scores: Tensor, count: int) -> Tensor:
    """Mask out the ``count`` lowest scores of each row, the earlier column first among equals.

    A stable sort is what makes ties deterministic and the count exact; ``topk`` promises neither.
    """
    mask = scores.new_ones(scores.shape).bool()
    if count:
        lowest = scores.sort(dim=1, stable=True).indices[:, :count]
        mask.scatter_(1, lowest, False)
    return mask


_PERCENT = re.compile(r"^(\d+(?:\.\d+)?)%(?: per (row|matrix))?$")
_NM = re.compile(r"^(\d+):(\d+)$")


def parse_pattern(text: object) -> Pattern:
    """Read a pattern as written in ``config.yaml``.

    Raises:
        FreelunchError: the text is no pattern, a sparsity is outside [0, 100 %), or N:M does not have 0 < N <= M.
    """
    if not isinstance(text, str):
        raise FreelunchError(
            f'{text!r} is not a pattern; write "50%", "50% per matrix" or "2:4", in quotes (YAML reads 2:4 as a number)'
        )
    if match := _PERCENT.match(text.strip()):
        percent, group = match.groups()
        sparsity = float(Fraction(percent) / 100)
        if not 0 <= sparsity < 1:
            raise FreelunchError(f"pattern {text!r}: a sparsity must be at least 0% and below 100%")
        return Unstructured(sparsity, group or "row")
    if match := _NM.match(text.strip()):
        keep, of = int(match[1]), int(match[2])
        if not 0 < keep <= of:
            raise FreelunchError(f"pattern {text!r}: N:M keeps N of M, so 0 < N <= M")
        return NM(keep, of)
    raise FreelunchError(f'{text!r} is not a pattern; write "50%", "50% per matrix" or "2:4"')
