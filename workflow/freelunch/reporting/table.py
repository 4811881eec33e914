"""A table as numbers: lines of estimates under columns. ``tables`` holds the builders, ``rendering`` writes text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .estimates import Estimate


@dataclass(frozen=True)
class Column:
    """A column of numbers. ``count`` is written as an integer with all digits."""

    name: str
    label: str
    kind: Literal["number", "count"] = "number"
    compared: bool = False
    """Whether the lowest number of a line, among the columns compared, is marked as the best."""


@dataclass(frozen=True)
class Table:
    """Lines of estimates under columns, told apart by the values of ``levels``."""

    name: str
    suite: str
    title: str
    levels: tuple[str, ...]
    columns: tuple[Column, ...]
    lines: list[tuple[tuple[Any, ...], tuple[Estimate | None, ...]]]
    constants: dict[str, Any] = field(default_factory=dict)
    """Levels with one value only: named in the title, and columns of the CSV alone."""
