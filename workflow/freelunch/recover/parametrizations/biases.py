"""The biases of the linear layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from freelunch.errors import FreelunchError
from freelunch.recover.parametrizations.parametrization import Parametrization


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


method = Biases
