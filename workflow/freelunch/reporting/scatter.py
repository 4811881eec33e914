"""Test perplexity against a property of the runs: one mark per value of the axis compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from freelunch.errors import FreelunchError
from freelunch.reporting import charts, findings, labels, style
from freelunch.reporting.comparisons import Group, varying
from freelunch.reporting.estimates import Estimate, ordered, suite


def draw(
    groups: Sequence[Group], column: str, looks: Callable[[list[str]], dict[str, style.Look]], text: str
) -> Figure:
    """Perplexity over the column, both on a logarithmic scale; a panel per group.

    Args:
        groups: a comparison along one axis, whose values are told apart by their marks.
        column: of the runs.
        looks: of the values.
        text: the small print.
    """
    found = _panels(groups)
    axis_name = groups[0].axis
    values = [value for (value,) in ordered(pd.concat([group.runs for group in groups]), [axis_name])]
    known = looks(values)
    figure, axes = charts.axes_of(found)
    for axis, (_, (group,)) in zip(axes, found, strict=True):
        for value, x, cell in _points(group, column):
            charts.marks(axis, [x], [cell], known[value])
        charts.framed(axis, [cell for _, _, cell in _points(group, column)], group)
        charts.log_x(axis, [x for _, x, _ in _points(group, column)], labels.compact, labels.axis(column))
    keys = [charts.key(labels.value(axis_name, value), look) for value, look in known.items()]
    return charts.finish(figure, keys, text)


def finding(groups: Sequence[Group], column: str, unit: str) -> str:
    """Perplexity and column of every value: ``Block 29.9 (1.20 GiB)``."""
    sentences = []
    for title, (group,) in charts.home(_panels(groups)):
        points = _points(group, column)
        told = [f"{labels.value(group.axis, value)} {findings.shown(cell)} ({labels.compact(x)}{unit})"
                for value, x, cell in points]  # fmt: skip
        front = ", ".join(labels.value(group.axis, value) for value in pareto(points))
        best = [f"none is better in both than {front}"] if front else []
        sentences.append((title, "; ".join([", ".join(told), *best, findings.against(group)])))
    return findings.joined(sentences)


def pareto(points: Sequence[tuple[str, float, Estimate]]) -> list[str]:
    """The values that no other beats in both numbers, nor equals in one and beats in the other; lower is better."""
    finite = [(value, x, cell.value) for value, x, cell in points if math.isfinite(cell.value)]
    return [
        value for value, x, y in finite
        if not any(a <= x and b <= y and (a < x or b < y) for _, a, b in finite)
    ]  # fmt: skip


def having(groups: Sequence[Group], column: str, view: str) -> list[Group]:
    """The groups in which at least two values have the column.

    Raises:
        FreelunchError: there is none.
    """
    found = [group for group in groups if len(_points(group, column)) > 1]
    if not found:
        raise FreelunchError(f"{view} needs {labels.axis(column).lower()} of at least two runs that are compared; "
                             f"suite {suite(groups[0].runs)} has none")  # fmt: skip
    return found


def _points(group: Group, column: str) -> list[tuple[str, float, Estimate]]:
    found = [(value, group.estimate(value, column), group.estimate(value)) for value in group.values]
    return [(value, x.value, cell) for value, x, cell in found if x is not None and cell is not None]


def _panels(groups: Sequence[Group]) -> list[charts.Panel]:
    """One panel per group, whatever it differs in."""
    differing: list[Any] = [name for name in varying(group.setting for group in groups) if name != "core"]
    found = [(charts.title(group.setting, differing), [group]) for group in groups]
    here = charts.home(found)
    return [*here, *(panel for panel in found if not any(panel is other for other in here))]
