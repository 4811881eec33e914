"""Test perplexity against training tokens and compute: local reconstruction beside retraining and repair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas import DataFrame

from freelunch.reporting import charts, claims, findings, labels, style
from freelunch.reporting.comparisons import Group, rows_of
from freelunch.reporting.estimates import Estimate, of, ordered, summary
from freelunch.reporting.retraining import SERIES, races, series

_VIEW = "figure retraining"
_SCALES = {"training_tokens": "Training tokens", "operations": "Training compute (FLOP)"}
"""What perplexity is drawn against; compute also has the tokens that searches of learning rates took."""


class Point(NamedTuple):
    """Tokens trained on, operations (missing where the model's size is) and perplexity."""

    training_tokens: int
    operations: float
    cell: Estimate


Points = list[Point]


class Series(NamedTuple):
    """A line: its name, what it is, and its points by training tokens."""

    name: str
    about: dict[str, Any]
    points: Points


@style.applied()
def draw(rows: DataFrame) -> Figure:
    """One line per loss and parametrization, over tokens and beside that over operations, if the size is known.

    Repairs, which train on nothing, are horizontal lines.

    Raises:
        FreelunchError: as ``retraining.races``.
    """
    groups = races(rows, _VIEW)
    lines = _named(groups)
    every = {line.name: line for inside in lines for line in inside}
    trained = [name for name, line in every.items() if line.about["recovery"] != "repair"]
    repaired = [name for name in every if name not in trained]
    looks = {name: style.SERIES[place % len(style.SERIES)] for place, name in enumerate([*trained, *repaired])}
    found = charts.panels(groups)
    scales = [scale for scale in _SCALES if _known(every, scale)]
    figure, axes = charts.axes_of([panel for panel in found for _ in scales])
    for axis, (panel, scale) in zip(axes, product(found, scales), strict=True):
        (group,) = panel[1]
        inside = lines[groups.index(group)]
        for name, _, points in inside:
            xs, cells = [float(getattr(point, scale)) for point in points], [point.cell for point in points]
            if name in trained:
                charts.marks(axis, xs, cells, looks[name], "-")
            else:
                _repaired(axis, name, cells[0], looks[name], repaired.index(name))
        charts.framed(axis, [point.cell for line in inside for point in line.points], group)
        amounts = [float(getattr(point, scale)) for line in inside for point in line.points]
        charts.log_x(axis, amounts, labels.compact, _SCALES[scale])
    keys = [charts.key(name, looks[name], "-") for name in trained]
    keys += [Line2D([], [], color=looks[name].colour, linestyle=charts.MIXED, label=name) for name in repaired]
    return charts.finish(figure, keys, _statement(groups, lines))


def _known(lines: dict[str, Series], scale: str) -> bool:
    return all(math.isfinite(getattr(point, scale)) for line in lines.values() for point in line.points)


def _repaired(axis: Axes, name: str, found: Estimate, look: style.Look, place: int) -> None:
    if math.isfinite(found.value):
        charts.level(axis, found.value, look.colour, charts.MIXED, said=False)
        return
    said = f"{name}: {style.printed(found.value)}"
    axis.text(0.02, 0.98 - 0.07 * place, said, transform=axis.transAxes, va="top", fontsize=6.5)


def caption(rows: DataFrame) -> str:
    """The paper's claim; the ends of every line, and how many tokens retraining needs to be as good."""
    groups = races(rows, _VIEW)
    return _statement(groups, _named(groups))


def selected(rows: DataFrame) -> DataFrame:
    """Perplexities of the runs that are compared."""
    return rows_of(races(rows, _VIEW), rows)


def _statement(groups: list[Group], lines: list[list[Series]]) -> str:
    sentences = []
    for title, (group,) in charts.home(charts.panels(groups)):
        inside = lines[groups.index(group)]
        told = []
        for name, about, points in inside:
            ends = points[:1] + points[1:][-1:]
            said = " to ".join(f"{findings.shown(p.cell)} ({labels.compact(p.training_tokens)})" for p in ends)
            said = findings.shown(points[0].cell) if about["recovery"] == "repair" else said
            told.append(f"{name} {said}{_factor(about, points, inside)}")
        sentences.append((title, "; ".join([*told, findings.against(group)])))
    return claims.statement("retraining", "perplexity (training tokens). " + findings.joined(sentences))


def _points(runs: DataFrame) -> Points:
    """Perplexity by training tokens."""
    points = []
    for (count,) in ordered(runs, ["training_tokens"]):
        at = of(runs, ["training_tokens"], [count])
        cell = summary(at)
        if cell is not None:
            points.append(Point(int(count), float(at["operations"].iloc[0]), cell))
    return points


def _named(groups: Sequence[Group]) -> list[list[Series]]:
    """The series of every comparison with their names: the axes in which the figure's series differ."""
    found = [series(group) for group in groups]
    everything = [about for lines in found for about, _ in lines]
    return [[Series(_name(about, everything), about, _points(runs)) for about, runs in lines] for lines in found]


def _name(about: dict[str, Any], everything: Sequence[dict[str, Any]]) -> str:
    alike = [other for other in everything if other["recovery"] == about["recovery"]]
    trained = [other for other in everything if other["recovery"] != "repair"]
    # a parametrization is told of all that are trained if of any
    told = [axis for axis in SERIES if axis not in ("recovery", "parametrization")
            and len({str(other[axis]) for other in alike}) > 1]  # fmt: skip
    if about["recovery"] == "retrain" and "loss" not in told:
        told.insert(0, "loss")
    if about["recovery"] != "repair" and len({str(other["parametrization"]) for other in trained}) > 1:
        told.append("parametrization")
    if about["recovery"] == "repair":
        told = ["repair"]
    # the loss says that it is retraining
    first = [] if about["recovery"] == "retrain" else [labels.value("recovery", about["recovery"])]
    return ", ".join([*first, *(labels.value(axis, about[axis]) for axis in told)])


def _factor(about: dict[str, Any], points: Points, lines: Sequence[Series]) -> str:
    """How many times the tokens and compute of reconstruction, trained alike, retraining takes to be as good."""
    if about["recovery"] != "retrain":
        return ""
    local = [found for _, other, found in lines if other["recovery"] == "reconstruct"
             and other["parametrization"] == about["parametrization"]]  # fmt: skip
    if not local:
        return ""
    aim = local[0][0]
    reached = next((point for point in points if point.cell.value <= aim.cell.value), None)
    end = reached or points[-1]
    good = "reaches" if reached else "does not reach"
    told = f"{end.training_tokens / aim.training_tokens:.3g} times the tokens"
    if math.isfinite(end.operations) and aim.operations:
        told += f" and {end.operations / aim.operations:.3g} times the compute"
    return f" [{good} reconstruction on {labels.compact(aim.training_tokens)} with {told}]"
