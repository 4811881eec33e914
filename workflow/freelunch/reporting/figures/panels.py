"""Small multiples: columns are criterion and pattern, wrapped where the page ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pandas import DataFrame

from .. import labels
from ..estimates import ordered

WIDEST = 4
"""Columns that fit the width of a page."""


def title(names: Sequence[str], values: Sequence[Any]) -> str:
    """``Wanda, 2:4``: the values that a panel is of."""
    return ", ".join(labels.described(*pair) for pair in zip(names, values, strict=True))


def settings(frame: DataFrame, extra: Sequence[str]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """The axes that tell panels apart, and their values in reading order."""
    names = ("criterion", "pattern", *extra)
    return names, ordered(frame, names)


def wrapped(panels: Sequence[Any], widest: int = WIDEST) -> list[list[Any]]:
    """Panels in lines of nearly equal length, at most ``widest``."""
    count = -(-len(panels) // widest)
    width = -(-len(panels) // count)
    return [list(panels[i : i + width]) for i in range(0, len(panels), width)]


def of(frame: DataFrame, names: Sequence[str], values: Sequence[Any]) -> DataFrame:
    """The rows with these values."""
    for name, value in zip(names, values, strict=True):
        frame = frame[frame[name].isna() if value is None or value != value else frame[name] == value]
    return frame
