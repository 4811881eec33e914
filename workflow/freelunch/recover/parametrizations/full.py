"""All kept weights of the matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from freelunch.recover.parametrizations.parametrization import Parametrization


@dataclass(frozen=True)
class Full(Parametrization):
    """``W * M``: pruned weights start at zero, get no gradient and stay there."""

    matrices: ClassVar[bool] = True
    whole: ClassVar[bool] = True


method = Full
