"""What a parametrization is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from freelunch.prune.methods import positive

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
