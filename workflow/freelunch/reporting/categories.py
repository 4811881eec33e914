"""Test perplexity by the values of one axis that has no scale, such as the flow."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from . import charts, findings, labels, style
from .comparisons import Group, varying
from .estimates import ordered

_FITTING = 14
"""Values that can be printed in one panel."""


def draw(groups: Sequence[Group], text: str, default: str) -> Figure:
    """One mark per value and series, side by side; panels are criterion and pattern.

    Args:
        groups: a comparison along one axis; each is a series.
        text: the small print.
        default: what the series is called if there is but one.
    """
    found = charts.panels(groups)
    differing = varying(group.setting for group in groups)
    names = list(dict.fromkeys(charts.named(group, differing, default) for group in groups))
    values = _values(groups)
    figure, axes = charts.axes_of(found)
    for axis, (_, inside) in zip(axes, found, strict=True):
        offsets = np.linspace(-0.3, 0.3, len(names)) if len(names) > 1 else np.zeros(1)
        cells = []
        for group in inside:
            place = names.index(charts.named(group, differing, default))
            pairs = [(values.index(value), group.estimate(value)) for value in group.values]
            points = [(x + float(offsets[place]), cell) for x, cell in pairs if cell is not None]
            cells += [cell for _, cell in points]
            look = style.SERIES[place % len(style.SERIES)]
            charts.marks(axis, [x for x, _ in points], [cell for _, cell in points], look)
            if len(names) * len(values) <= _FITTING:
                for x, cell in points:
                    if np.isfinite(cell.value):
                        above = (x, cell.value + (cell.stderr if np.isfinite(cell.stderr) else 0))
                        axis.annotate(style.printed(cell.value), above, (0, 4), textcoords="offset points",
                                      ha="center", fontsize=6)  # fmt: skip
        charts.framed(axis, cells, inside[0])
        ticks = [fill(labels.value(groups[0].axis, value), 48 // len(values)) for value in values]
        axis.set_xticks(range(len(values)), ticks)
        axis.set_xlim(-0.6, len(values) - 0.4)
        axis.set_xlabel(labels.axis(groups[0].axis))
    keys = [charts.key(name, style.SERIES[i % len(style.SERIES)]) for i, name in enumerate(names)]
    return charts.finish(figure, keys, text)


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
