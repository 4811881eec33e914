"""The parameters of the norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from freelunch.recover.parametrizations.parametrization import Parametrization


@dataclass(frozen=True)
class Norms(Parametrization):
    """Everything in a window that belongs to no linear layer: gains and shifts of its norms."""

    norms: ClassVar[bool] = True


method = Norms
