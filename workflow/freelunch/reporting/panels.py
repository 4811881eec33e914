"""Small multiples: columns are criterion and pattern, wrapped where the page ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pandas import DataFrame, Series

from freelunch.reporting import labels
from freelunch.reporting.estimates import of, ordered


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


def parts(frame: DataFrame) -> list[str]:
    """The kinds of windows of some losses (see ``curves``), in the order a reader expects."""
    return [part for _, part in ordered(frame.assign(window=frame["variant"]), ["window", "part"])]


def sentences(frame: DataFrame, extra: Sequence[str], say: Callable[[Series], str]) -> list[tuple[str, str]]:
    """By panel its title, and every kind of window that it has with what is to be said of its ``ratio``."""
    names = (*extra, "criterion", "pattern")
    kinds, found = parts(frame), []
    for panel in ordered(frame, names):
        at = of(frame, names, panel)
        ratios = {part: at["ratio"][at["part"] == part] for part in kinds}
        told = [f"{labels.value('window', part)} {say(ratio)}" for part, ratio in ratios.items() if len(ratio)]
        found.append((title(names, panel), ", ".join(told)))
    return found


def wrapped(panels: Sequence[Any], widest: int) -> list[list[Any]]:
    """Cut into lines of nearly equal length, at most ``widest``."""
    count = -(-len(panels) // widest)
    width = -(-len(panels) // count)
    return [list(panels[i : i + width]) for i in range(0, len(panels), width)]
