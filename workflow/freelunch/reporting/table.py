"""A table as numbers: lines of estimates under columns. ``tables`` holds the builders, ``rendering`` writes text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from freelunch.reporting.estimates import Estimate

Line = tuple[tuple[Any, ...], tuple[Estimate | None, ...]]


@dataclass(frozen=True)
class Column:
    """A column of numbers. ``count`` is written as an integer with all digits."""

    name: str
    label: str
    kind: Literal["number", "count"] = "number"


@dataclass(frozen=True)
class Contest:
    """Cells, by line and column, of which the lowest number (or the highest) is the best, and bold."""

    cells: tuple[tuple[int, int], ...]
    highest: bool = False


@dataclass(frozen=True)
class Table:
    """Lines of estimates under columns, told apart by the values of ``levels``."""

    name: str
    suite: str
    title: str
    levels: tuple[str, ...]
    columns: tuple[Column, ...]
    lines: list[Line]
    constants: dict[str, Any] = field(default_factory=dict)
    """Levels with one value only: named in the title, and columns of the CSV alone."""
    contests: tuple[Contest, ...] = ()
    bold: str = ""
    """What is bold: ``the best of each row``."""
    about: str = ""
    """What is claimed, what was found, and the protocol, each on a line of its own."""
