"""Test perplexity against training tokens: local reconstruction beside retraining and repair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas import DataFrame

from .. import charts, claims, findings, labels, style
from ..comparisons import Group
from ..estimates import Estimate, of, ordered, summary
from ..retraining import SERIES, races, series

_VIEW = "figure retraining"
Points = list[tuple[int, Estimate]]


class Series(NamedTuple):
    """A line: its name, what it is, and its perplexity by training tokens."""

    name: str
    about: dict[str, Any]
    points: Points


@style.applied()
def draw(rows: DataFrame) -> Figure:
    """One line per loss and parametrization; repairs, which train on nothing, are horizontal lines.

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
    figure, axes = charts.axes_of(found)
    for axis, (_, (group,)) in zip(axes, found, strict=True):
        cells, tokens = [], []
        for name, _, points in lines[groups.index(group)]:
            cells += [cell for _, cell in points]
            tokens += [count for count, _ in points if count]
            if name in trained:
                charts.marks(axis, [count for count, _ in points], [cell for _, cell in points], looks[name], "-")
            else:
                _repaired(axis, name, points[0][1], looks[name], repaired.index(name))
        charts.framed(axis, cells, group)
        charts.log_x(axis, tokens, charts.compact, "Training tokens")
    keys = [charts.key(name, looks[name], "-") for name in trained]
    keys += [Line2D([], [], color=looks[name].colour, linestyle=charts.MIXED, label=name) for name in repaired]
    return charts.finish(figure, keys, _statement(groups, lines))


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


def _statement(groups: list[Group], lines: list[list[Series]]) -> str:
    sentences = []
    for title, (group,) in charts.home(charts.panels(groups)):
        inside = lines[groups.index(group)]
        told = []
        for name, about, points in inside:
            ends = points[:1] + points[1:][-1:]
            said = " to ".join(f"{findings.shown(cell)} ({charts.compact(count)})" for count, cell in ends)
            said = findings.shown(points[0][1]) if about["recovery"] == "repair" else said
            told.append(f"{name} {said}{_factor(about, points, inside)}")
        sentences.append((title, "; ".join([*told, findings.against(group)])))
    return claims.statement("retraining", "perplexity (training tokens). " + findings.joined(sentences))


def _points(runs: DataFrame) -> Points:
    """Perplexity by training tokens."""
    found = [
        (int(count), summary(of(runs, ["training_tokens"], [count]))) for (count,) in ordered(runs, ["training_tokens"])
    ]
    return [(count, cell) for count, cell in found if cell is not None]


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
    """How many times the tokens of reconstruction, trained alike, a line of retraining takes to be as good."""
    if about["recovery"] != "retrain":
        return ""
    local = [found for _, other, found in lines if other["recovery"] == "reconstruct"
             and other["parametrization"] == about["parametrization"]]  # fmt: skip
    if not local:
        return ""
    count, aim = local[0][0]
    reached = next((tokens for tokens, cell in points if cell.value <= aim.value), None)
    times = (points[-1][0] if reached is None else reached) / count
    good = "reaches" if reached is not None else "does not reach"
    return f" [{good} reconstruction on {charts.compact(count)} with {times:.3g} times the tokens]"
