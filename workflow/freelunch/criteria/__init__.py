"""Pruning criteria: one small class each, in a module of the criterion's name.

To add one, write ``criteria/<name>.py`` that ends with ``criterion = YourCriterion()``, and add the name to
``Axes.criterion`` in ``config``.
"""

from __future__ import annotations

from importlib import import_module

from .criterion import Criterion


def named(name: str) -> Criterion:
    """The criterion of that name. Looked up by module, so that editing one reruns only its own results."""
    found: Criterion = import_module(f"{__name__}.{name}").criterion
    return found
