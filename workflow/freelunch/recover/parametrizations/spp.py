"""SPP: scales from two small factors, added to the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from freelunch.recover.parametrizations.parametrization import LoRA

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class SPP(LoRA):
    """``W + s (P * q) * W``: row ``i`` of ``P`` is row ``i // ceil(rows / rank)`` of ``A`` ``[rank, columns]``, and
    ``q`` is ``B`` ``[rows, 1]`` (SPP, arXiv 2405.16057; not the ``(B A) * W`` that PERP's code calls spp). Where the
    rank does not divide the rows, ``A`` has those rows only that are used.
    """

    def factors(self, rows: int, columns: int, generator: Generator) -> tuple[Tensor, Tensor]:
        down, up = super().factors(rows, columns, generator)
        return down[: self._used(rows)].clone(), up[:, :1].clone()

    def effective(self, weight: Tensor, mask: Tensor, down: Tensor, up: Tensor) -> Tensor:
        rows = weight.shape[0]
        scales = down.repeat_interleave(self._repeats(rows), dim=0)[:rows]
        return weight + self.scale * (scales * up) * weight

    def _repeats(self, rows: int) -> int:
        return -(-rows // self.rank)

    def _used(self, rows: int) -> int:
        """Rows of ``A`` that rows of the matrix come from: fewer than ``rank`` where it does not divide."""
        return -(-rows // self._repeats(rows))


method = SPP
