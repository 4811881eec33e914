"""Pruning criteria: one small class each, in a module of the criterion's name.

To add one, write ``criteria/<name>.py`` that ends with ``criterion = YourCriterion()``; nothing else knows its name.
Imports no torch, so that the config can be checked against the names.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # absolute: provenance follows relative imports, and no criterion depends on another
    from freelunch.criteria.criterion import Criterion

_STEMS = {path.stem for path in Path(__file__).parent.glob("*.py")}
NAMES = tuple(sorted(_STEMS - {"__init__", "criterion"}))


def named(name: str) -> Criterion:
    """The criterion of that name. Looked up by module, so that editing one reruns only its own results."""
    found: Criterion = import_module(f"{__name__}.{name}").criterion
    return found
