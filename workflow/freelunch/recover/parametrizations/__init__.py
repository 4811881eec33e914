"""Parametrizations: which parameters of a window are trained, and how its matrices are written in terms of them.

One small class each, in a module of the parametrization's name, joined by ``+``: one for the matrices (``full`` or a
low-rank one), ``biases``, ``norms``. To add one, write ``parametrizations/<name>.py`` that ends with
``method = YourParametrization``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from freelunch.errors import FreelunchError
from freelunch.prune.methods import Methods, describe

if TYPE_CHECKING:
    from freelunch.recover.parametrizations.parametrization import Parametrization

_JOINED = re.compile(r"\+(?=\s*[A-Za-z_])")  # not the + of 1e+2
_METHODS = Methods(__name__, Path(__file__).parent, "parametrization", "parametrization")
NAMES = _METHODS.names


def parse_parametrization(text: object) -> tuple[Parametrization, ...]:
    """The parts that a text such as ``mask_lora(rank=8) + biases + norms`` stands for; that of the matrices first.

    Raises:
        FreelunchError: a part is unknown, occurs twice, or two of them train the matrices.
    """
    if not isinstance(text, str):
        raise FreelunchError(f"{text!r} is no parametrization; write names joined by +")
    parts: list[Parametrization] = [_METHODS.parse(part) for part in _JOINED.split(text)]
    if len({type(part) for part in parts}) < len(parts):
        raise FreelunchError(f"parametrization {text!r}: a part is there twice")
    if sum(part.matrices for part in parts) > 1:
        raise FreelunchError(f"parametrization {text!r}: only one part can train the matrices")
    return tuple(sorted(parts, key=lambda part: (not part.matrices, describe(part))))


def canonical_parametrization(text: object) -> str:
    """The one way a parametrization is written in specs and rows."""
    return " + ".join(describe(part) for part in parse_parametrization(text))
