"""Test perplexity by the values of one axis that has no scale, such as the flow or the criterion."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from freelunch.reporting import charts, findings, labels, style
from freelunch.reporting.comparisons import PRUNED, Group, varying
from freelunch.reporting.estimates import Estimate, ordered

_ALONE = labels.value("variant", labels.NOT_RECOVERED)
_FITTING = 14
"""Values that can be printed in one panel."""


def draw(groups: Sequence[Group], text: str, default: str) -> Figure:
    """One mark per value and series, side by side; panels are criterion and pattern.

    Where the axis is one of pruning, what is not recovered is a series of its own; else it is a dotted line.

    Args:
        groups: a comparison along one axis; each is a series.
        text: the small print.
        default: what the series is called if there is but one.
    """
    found = charts.panels(groups)
    differing = varying(group.setting for group in groups)
    names = list(dict.fromkeys(charts.named(group, differing, default) for group in groups))
    looks = {name: style.SERIES[place % len(style.SERIES)] for place, name in enumerate(names)}
    values = _values(groups)
    pruning = groups[0].axis in PRUNED
    if pruning:
        looks = {_ALONE: style.LOOKS[labels.NOT_RECOVERED], **looks}
    figure, axes = charts.axes_of(found)
    offsets = dict(zip(looks, np.linspace(-0.3, 0.3, len(looks)) if len(looks) > 1 else np.zeros(1), strict=True))
    for axis, (_, inside) in zip(axes, found, strict=True):
        series = {charts.named(group, differing, default): {v: group.estimate(v) for v in group.values}
                  for group in inside}  # fmt: skip
        if pruning:
            series[_ALONE] = {value: inside[0].baseline(value) for value in inside[0].values}
        for name, cells in series.items():
            points = [(values.index(v) + float(offsets[name]), cell) for v, cell in cells.items() if cell is not None]
            charts.marks(axis, [x for x, _ in points], [cell for _, cell in points], looks[name])
            if len(looks) * len(values) <= _FITTING:
                _print(axis, points)
        charts.framed(axis, [c for cells in series.values() for c in cells.values()], inside[0], alone=not pruning)
        ticks = [fill(labels.value(groups[0].axis, value), 42 // len(values)) for value in values]
        axis.set_xticks(range(len(values)), ticks)
        axis.set_xlim(-0.6, len(values) - 0.4)
        axis.set_xlabel(labels.axis(groups[0].axis))
    keys = [charts.key(name, look) for name, look in looks.items()]
    return charts.finish(figure, keys, text, alone=not pruning)


def _print(axis: Axes, points: Sequence[tuple[float, Estimate]]) -> None:
    """Values above their marks."""
    for x, cell in points:
        if np.isfinite(cell.value):
            above = (x, cell.value + (cell.stderr if np.isfinite(cell.stderr) else 0))
            place: dict[str, Any] = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center"}
            axis.annotate(style.printed(cell.value), above, **place, fontsize=6)


def finding(groups: Sequence[Group]) -> str:
    """The perplexity of every value, series by series."""
    differing = varying(group.setting for group in groups)
    sentences = []
    for title, inside in charts.home(charts.panels(groups)):
        told = []
        for group in inside:
            name = charts.named(group, differing)
            pairs = [(labels.value(group.axis, value), group.estimate(value)) for value in group.values]
            told.append((f"{name}: " if name else "") + findings.listed(pairs))
        sentences.append((title, "; ".join([*told, findings.against(inside[0])])))
    return findings.joined(sentences)


def _values(groups: Sequence[Group]) -> list[str]:
    return [value for (value,) in ordered(pd.concat([group.runs for group in groups]), [groups[0].axis])]
