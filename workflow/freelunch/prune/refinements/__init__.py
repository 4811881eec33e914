"""Refinements of a pruned matrix, one small class each, in a module of the refinement's name.

They sit on any mask, and are written one after the other: ``dsnot + exact``. To add one, write
``refinements/<name>.py`` that ends with ``method = YourRefinement``.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from freelunch.errors import FreelunchError
from freelunch.prune.methods import Methods, describe

if TYPE_CHECKING:
    from freelunch.prune.refinements.refinement import Refinement

NONE = "none"
_JOINED = re.compile(r"\+(?=\s*[A-Za-z_])")  # not the + of 1e+2
_METHODS = Methods(__name__, Path(__file__).parent, "refinement", "refinement")
NAMES = (NONE, *_METHODS.names)


def parse_refinements(text: object) -> tuple[Refinement, ...]:
    """The refinements that a text such as ``none``, ``exact`` or ``dsnot + admm(rho=2)`` stands for, in order."""
    if not isinstance(text, str):
        raise FreelunchError(f"{text!r} is no refinement; write none, or names joined by +")
    if text.strip() == NONE:
        return ()
    found: tuple[Refinement, ...] = tuple(_METHODS.parse(part) for part in _JOINED.split(text))
    for before, after in pairwise(found):
        if before.last:
            raise FreelunchError(
                f"refinement {text!r}: {describe(before)} fits the weights it is given, so it comes last"
            )
        if after.first:
            raise FreelunchError(f"refinement {text!r}: {describe(after)} starts from dense weights, so it comes first")
    return found


def describe_refinements(refinements: tuple[Refinement, ...]) -> str:
    """The text that stands for refinements."""
    return " + ".join(describe(refinement) for refinement in refinements) or NONE
