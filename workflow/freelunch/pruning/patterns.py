"""Sparsity patterns: which weights of a score matrix stay.

In ``config.yaml`` a pattern is one string: ``50%`` (per row), ``50% per matrix``, ``50% global`` (over all matrices),
``2:4`` (keep 2 of every 4 inputs), ``20% structured`` (heads and MLP channels of every block), ``20% structured
global``. How many weights each matrix loses is the allocation's; the pattern says how they lie in it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING

from freelunch.errors import FreelunchError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Unstructured:
    """Prune a fraction of the weights, spread over rows, over each matrix, or over the whole model (``group``)."""

    sparsity: float
    group: str = "row"

    def __str__(self) -> str:
        return f"{_percent(self.sparsity)}%{ {'row': '', 'matrix': ' per matrix', 'model': ' global'}[self.group] }"

    @property
    def slug(self) -> str:
        return _percent(self.sparsity) + ("" if self.group == "row" else f"-{self.group}")

    def pruned(self, size: int) -> int:
        """Number of pruned weights of ``size``: rounded half up."""
        return rounded(self.sparsity, size)

    def step(self, size: int) -> int:
        """Pruned weights come one by one."""
        return 1

    def check(self, rows: int, columns: int, name: str) -> None:
        """Nothing to refuse: it fits every matrix."""

    def quotas(self, scores: Tensor, pruned: int) -> Tensor:
        """Pruned weights of every group of a ``[rows, columns]`` matrix: of its rows, or of the matrix as one group.

        Rows differ by one at most; where they do, those whose next weight has the lowest score lose one more.
        """
        if self.group != "row":
            return scores.new_tensor([pruned]).long()
        rows, columns = scores.shape
        base, extra = divmod(pruned, rows)
        quotas = scores.new_full((rows,), base).long()
        if extra:
            at = min(base + 1, columns)
            if scores.device.type == "cpu":
                following = scores.kthvalue(at, dim=1).values
            else:  # where kthvalue has no deterministic algorithm
                following = scores.topk(at, dim=1, largest=False).values[:, -1]
            quotas[following.sort(stable=True).indices[:extra]] += 1
        return quotas

    def mask(self, scores: Tensor, pruned: int) -> Tensor:
        """Boolean mask of ``scores``' shape, True = kept; the ``pruned`` lowest scores go, ties by position."""
        from freelunch.pruning.selection import drop_lowest

        if self.group != "row":
            return drop_lowest(scores.reshape(1, -1), pruned).reshape(scores.shape)
        base, extra = divmod(pruned, scores.shape[0])
        return drop_lowest(scores, self.quotas(scores, pruned) if extra else base)

    def fits(self, mask: Tensor, pruned: int) -> bool:
        """Whether a mask prunes ``pruned`` weights, spread as the pattern says."""
        from freelunch.pruning.selection import dropped

        lost = dropped(mask)
        spread = self.group != "row" or int(lost.max()) - int(lost.min()) <= 1
        return int(lost.sum()) == pruned and spread


@dataclass(frozen=True)
class NM:
    """Keep ``keep`` of every ``of`` consecutive inputs; an allocation may give matrices other values of ``keep``."""

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

    def pruned(self, size: int) -> int:
        """Number of pruned weights of ``size``."""
        return size // self.of * (self.of - self.keep)

    def step(self, size: int) -> int:
        """Pruned weights come in one of every group of the matrix."""
        return size // self.of

    def check(self, rows: int, columns: int, name: str) -> None:
        """Raise if the input width is not a multiple of the group."""
        if columns % self.of:
            raise FreelunchError(f"pattern {self}: the {columns} inputs of {name} are not a multiple of {self.of}")

    def mask(self, scores: Tensor, pruned: int) -> Tensor:
        """Boolean mask of ``scores``' shape, True = kept; the lowest scores of each group go, ties by position."""
        from freelunch.pruning.selection import drop_lowest

        rows, columns = scores.shape
        self.check(rows, columns, f"a {rows} x {columns} matrix")
        return drop_lowest(scores.reshape(-1, self.of), self.per_group(scores.numel(), pruned)).reshape(scores.shape)

    def per_group(self, size: int, pruned: int) -> int:
        """Pruned weights of every group of a matrix of ``size`` weights that loses ``pruned``."""
        count, rest = divmod(pruned, size // self.of)
        if rest:
            raise FreelunchError(f"pattern {self}: {pruned} of {size} weights is no whole number per {self.of}")
        return count

    def fits(self, mask: Tensor, pruned: int) -> bool:
        """Whether every group of a mask has lost the same number of weights, ``pruned`` in all."""
        from freelunch.pruning.selection import dropped

        lost = dropped(mask.reshape(-1, self.of))
        return bool((lost == lost[0]).all()) and int(lost.sum()) == pruned


@dataclass(frozen=True)
class Structured:
    """Prune a fraction of the heads and of the MLP channels of every block; or, with ``group="model"``, of their
    weights over the whole model, of which blocks may lose more or less.
    """

    sparsity: float
    group: str = "block"

    def __str__(self) -> str:
        return f"{_percent(self.sparsity)}% structured" + (" global" if self.group == "model" else "")

    @property
    def slug(self) -> str:
        return f"{_percent(self.sparsity)}-structured" + ("-model" if self.group == "model" else "")

    def pruned(self, units: int) -> int:
        """Number of pruned units of ``units``: rounded half up."""
        return rounded(self.sparsity, units)

    def check(self, rows: int, columns: int, name: str) -> None:
        """Matrices lose whole rows or columns, whatever their shape; ``structured`` looks at the blocks."""


Pattern = Unstructured | NM | Structured


def rounded(fraction: float, size: int) -> int:
    """``fraction * size`` rounded half up, without binary noise: 0.7 * 10 is 7, not 6.999…"""
    # str() gives the decimal the user wrote
    return math.floor(Fraction(str(fraction)) * size + Fraction(1, 2))


def _percent(fraction: float) -> str:
    """Percent as the user may write it: all digits, no exponent."""
    return f"{(100 * Decimal(str(fraction))).normalize():f}"


_PERCENT = re.compile(r"^(\d+(?:\.\d+)?)%(?: (per row|per matrix|global|structured|structured global))?$")
_NM = re.compile(r"^(\d+):(\d+)$")
_FORMS = '"50%", "50% per matrix", "50% global", "2:4", "20% structured" or "20% structured global"'


def parse_pattern(text: object) -> Pattern:
    """Read a pattern as written in ``config.yaml``.

    Raises:
        FreelunchError: the text is no pattern, a sparsity is outside [0, 100 %), or N:M does not have 0 < N <= M.
    """
    if not isinstance(text, str):
        raise FreelunchError(f"{text!r} is not a pattern; write {_FORMS}, in quotes (YAML reads 2:4 as a number)")
    if match := _PERCENT.match(text.strip()):
        percent, form = match.groups()
        sparsity = float(Fraction(percent) / 100)
        if not 0 <= sparsity < 1:
            raise FreelunchError(f"pattern {text!r}: a sparsity must be at least 0% and below 100%")
        if form and form.startswith("structured"):
            return Structured(sparsity, "model" if form.endswith("global") else "block")
        group = {None: "row", "per row": "row", "per matrix": "matrix", "global": "model"}[form]
        return Unstructured(sparsity, group)
    if match := _NM.match(text.strip()):
        keep, of = int(match[1]), int(match[2])
        if not 0 < keep <= of:
            raise FreelunchError(f"pattern {text!r}: N:M keeps N of M, so 0 < N <= M")
        return NM(keep, of)
    raise FreelunchError(f"{text!r} is not a pattern; write {_FORMS}")
