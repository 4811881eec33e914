"""Small multiples: columns are criterion and pattern, wrapped where the page ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pandas import DataFrame

from . import labels
from .estimates import ordered


def settings(
    frame: DataFrame, extra: Sequence[str], widest: int
) -> tuple[tuple[str, ...], list[list[tuple[Any, ...]]]]:
    """The axes that tell panels apart, and their values in lines; a line is of one setting of the ``extra`` axes."""
    names = (*extra, "criterion", "pattern")
    groups: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for panel in ordered(frame, names):
        # a missing value differs from itself: the text is what groups
        groups.setdefault(tuple(str(value) for value in panel[:-2]), []).append(panel)
    most = max(len(panels) for panels in groups.values())
    width = len(wrapped(range(most), widest)[0])
    return names, [panels[i : i + width] for panels in groups.values() for i in range(0, len(panels), width)]


def title(names: Sequence[str], values: Sequence[Any]) -> str:
    """``Wanda, 2:4``, and below it the values of the other axes that tell panels apart."""
    told = [labels.described(*pair) for pair in zip(names, values, strict=True)]
    return "\n".join([", ".join(told[-2:]), *told[:-2]])


def wrapped(panels: Sequence[Any], widest: int) -> list[list[Any]]:
    """Cut into lines of nearly equal length, at most ``widest``."""
    count = -(-len(panels) // widest)
    width = -(-len(panels) // count)
    return [list(panels[i : i + width]) for i in range(0, len(panels), width)]
