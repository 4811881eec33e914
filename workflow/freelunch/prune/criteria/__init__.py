"""Pruning criteria, one small class each, in a module of the criterion's name.

To add one, write ``criteria/<name>.py`` that ends with ``method = YourCriterion``; nothing else knows its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from freelunch.prune.methods import Methods

if TYPE_CHECKING:
    from freelunch.prune.criteria.criterion import Criterion

_METHODS = Methods(__name__, Path(__file__).parent, "criterion", "criterion")
NAMES = _METHODS.names


def parse_criterion(text: object) -> Criterion:
    """The criterion that a text such as ``wanda`` or ``ria(alpha=1)`` stands for."""
    found: Criterion = _METHODS.parse(text)
    return found
