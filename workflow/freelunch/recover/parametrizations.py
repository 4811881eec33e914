"""Parametrizations: which parameters of a window are trained, and how its matrices are written in terms of them.

They are joined by ``+``: one for the matrices (``full`` or a low-rank one), ``biases``, ``norms``. To add one, register
a class here under its name. Imports no torch: the plan parses them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from freelunch.errors import FreelunchError
from freelunch.pruning.methods import Methods, describe, positive

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Parametrization:
    """A part of what is trained. Fields are settings, written ``name(field=value)``."""

    matrices: ClassVar[bool] = False
    """Whether it trains the matrices."""
    whole: ClassVar[bool] = False
    """Whether it trains all their kept weights."""
    biases: ClassVar[bool] = False
    norms: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    """Whether merged weights compute what training computed."""

    @property
    def adds_biases(self) -> bool:
        """Whether linear layers without a bias get one."""
        return False


PARAMETRIZATIONS: Methods[Parametrization] = Methods("parametrization")


def parse_parametrization(text: object) -> tuple[Parametrization, ...]:
    """The parts that a text such as ``mask_lora(rank=8) + biases + norms`` stands for; that of the matrices first.

    Raises:
        FreelunchError: a part is unknown, occurs twice, or two of them train the matrices.
    """
    if not isinstance(text, str):
        raise FreelunchError(f"{text!r} is no parametrization; write names joined by +")
    parts = PARAMETRIZATIONS.parse_joined(text)
    if len({type(part) for part in parts}) < len(parts):
        raise FreelunchError(f"parametrization {text!r}: a part is there twice")
    if sum(part.matrices for part in parts) > 1:
        raise FreelunchError(f"parametrization {text!r}: only one part can train the matrices")
    return tuple(sorted(parts, key=lambda part: (not part.matrices, describe(part))))


def canonical_parametrization(text: object) -> str:
    """The one way a parametrization is written in specs and rows."""
    return " + ".join(describe(part) for part in parse_parametrization(text))


@PARAMETRIZATIONS.register("full")
@dataclass(frozen=True)
class Full(Parametrization):
    """``W * M``: pruned weights start at zero, get no gradient and stay there."""

    matrices: ClassVar[bool] = True
    whole: ClassVar[bool] = True


@PARAMETRIZATIONS.register("biases")
@dataclass(frozen=True)
class Biases(Parametrization):
    """Biases of linear layers; with ``add=1`` layers that have none get one, which starts at zero."""

    biases: ClassVar[bool] = True
    add: int = 0

    def __post_init__(self) -> None:
        if self.add not in (0, 1):
            raise FreelunchError(f"add is 0 or 1, not {self.add}")

    @property
    def adds_biases(self) -> bool:
        return bool(self.add)


@PARAMETRIZATIONS.register("norms")
@dataclass(frozen=True)
class Norms(Parametrization):
    """Everything in a window that belongs to no linear layer: gains and shifts of its norms."""

    norms: ClassVar[bool] = True


@dataclass(frozen=True)
class LowRank(Parametrization):
    """Trains two small factors of each matrix instead of its weights.

    ``weight`` is ``[rows, columns]``, float32 and zero where ``mask`` (bool, True = kept) is False; so is what
    :meth:`merged` gives.
    """

    matrices: ClassVar[bool] = True
    rank: int = 16

    def __post_init__(self) -> None:
        positive(rank=self.rank)

    def factors(self, rows: int, columns: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """``A`` ``[rank, columns]`` and ``B`` ``[rows, rank]`` to start from, which change no weight."""
        import torch

        bound = columns**-0.5  # as torch.nn.Linear and peft do: Kaiming, uniform, with a = sqrt(5)
        down = torch.empty(self.rank, columns).uniform_(-bound, bound, generator=generator)
        return down, torch.zeros(rows, self.rank)

    def effective(self, weight: Tensor, mask: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """The weight that training computes with, of the factors ``A`` (down) and ``B`` (up)."""
        raise NotImplementedError

    def merged(self, weight: Tensor, mask: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """The weight that is saved."""
        return self.effective(weight, mask, down, up)


@dataclass(frozen=True)
class LoRA(LowRank):
    """Low-rank updates that are added, multiplied by ``alpha / rank``."""

    alpha: float = 32.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(alpha=self.alpha)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@PARAMETRIZATIONS.register("mask_lora")
@dataclass(frozen=True)
class MaskLoRA(LoRA):
    """``W + s (B A) * M`` (PERP, arXiv 2312.15230)."""

    def effective(self, weight: Tensor, mask: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return weight + self.scale * (up @ down) * mask


@PARAMETRIZATIONS.register("lora_prune")
@dataclass(frozen=True)
class LoRAPrune(LoRA):
    """Trains ``W + s B A``, saves ``W + s (B A) * M`` (PERP, arXiv 2312.15230): what is saved computes something else
    than what was trained. Kept to measure by how much.
    """

    exact: ClassVar[bool] = False

    def effective(self, weight: Tensor, mask: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return weight + self.scale * (up @ down)

    def merged(self, weight: Tensor, mask: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return self.effective(weight, mask, down, up) * mask


@PARAMETRIZATIONS.register("scale_lora")
@dataclass(frozen=True)
class ScaleLoRA(LowRank):
    """``W * (B A)``, where ``B A`` starts as ones (PERP, arXiv 2312.15230).

    The first rank is ones in both factors, the others start as LoRA does. If all ranks started alike, as in the
    official code, their gradients would be alike too, and the product would stay of rank one.
    """

    def factors(self, rows: int, columns: int, generator: Generator) -> tuple[Tensor, Tensor]:
        down, up = super().factors(rows, columns, generator)
        down[0], up[:, 0] = 1, 1
        return down, up

    def effective(self, weight: Tensor, mask: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return weight * (up @ down)


@PARAMETRIZATIONS.register("spp")
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
