"""The repair-sensitive transition: what repair gains over recalibration, and what norms read against their epsilon."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame

from freelunch.reporting import charts, claims, findings, labels, style
from freelunch.reporting.accuracies import CONTROL, RECALIBRATED, percent, present, signed
from freelunch.reporting.layers import per_layer
from freelunch.reporting.transitions import Point, transitions

_VIEW = "figure transition"


@style.applied()
def draw(rows: DataFrame) -> Figure:
    """Rows of panels are networks. Left the gain of the best repair over recalibration alone against sparsity, and
    (hollow) that of recalibration with a smaller epsilon; right the least and the median variance that each norm reads
    at the highest sparsity, over depth, and the norms' epsilon.

    Raises:
        FreelunchError: as ``transitions.transitions``.
    """
    points = transitions(rows, _VIEW)
    frames = [per_layer(rows, metric, _VIEW) for metric in ("least_variance", "median_variance")]
    frame, medians = (each[each["backend"] == RECALIBRATED] for each in frames)
    models, allocations = present(frame, "model"), present(frame, "allocation")
    looks = {each: style.SERIES[place % len(style.SERIES)] for place, each in enumerate(allocations)}
    figure, grid = style.grid(len(models), 2, 1.9, width=style.DOUBLE)
    for (left, right), model in zip(grid, models, strict=True):
        for allocation, look in looks.items():
            _gains(left, [p for p in points if (p.model, p.allocation) == (model, allocation)], look)
            for each, line in ((frame, "-"), (medians, ":")):
                inside = each[(each["model"] == model) & (each["allocation"] == allocation)]
                _variances(right, inside[inside["sparsity"] == inside["sparsity"].max()], look, line)
        left.axhline(0, color=style.GREY, linewidth=0.6, zorder=1)
        reach = [end for p in points if p.model == model for end in _reach(p)]
        room = 0.12 * max(1.0, max(reach) - min(reach))
        left.set_ylim(min(-1.0, *reach) - room, max(1.0, *reach) + room)
        left.set_ylabel("Gain over recalibration\n(points of accuracy)")
        left.set_title(model)
        shown = pd.concat([frame, medians])
        shown = shown[shown["model"] == model]["value"]
        epsilon = next(p.epsilon for p in points if p.model == model)
        style.log_scale(right, min(epsilon, float(shown.min())), max(epsilon, float(shown.max())), margin=0.08)
        charts.level(right, epsilon, style.BLACK, charts.DASHES, said=False)
        right.set_ylabel("Least and median variance\nof the channels of a norm")
        right.set_title(f"{model}, {percent(float(frame[frame['model'] == model]['sparsity'].max()))}")
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.label_columns([[row[0]] for row in grid], "Sparsity (%)")
    style.label_columns([[row[1]] for row in grid], "Depth (norm)")
    keys = [charts.key(labels.value("allocation", each), look, "-") for each, look in looks.items()]
    hollow = charts.key(labels.value("backend", CONTROL), style.Look(style.GREY, "o"))
    hollow.set_fillstyle("none")
    level = charts.key("Epsilon of the norms", style.Look(style.BLACK, ""), charts.DASHES)
    median = charts.key("Median of the channels", style.Look(style.GREY, ""), charts.DOTS)
    return charts.legend(figure, [*keys, hollow, level, median], _statement(points))


def _reach(point: Point) -> list[float]:
    """Where its mark, the ends of its bar and the mark of the control are."""
    error = point.gain.stderr if math.isfinite(point.gain.stderr) else 0.0
    control = [] if point.control is None else [point.control.value]
    return [point.gain.value - error, point.gain.value + error, *control]


def _gains(axis: Axes, points: list[Point], look: style.Look) -> None:
    charts.marks(axis, [100 * p.sparsity for p in points], [p.gain for p in points], look, "-")
    controls = [(100 * p.sparsity, p.control.value) for p in points if p.control is not None]
    axis.plot([x for x, _ in controls], [y for _, y in controls], look.marker, color=look.colour, markersize=7,
              fillstyle="none", markeredgewidth=0.7)  # fmt: skip


def _variances(axis: Axes, frame: DataFrame, look: style.Look, line: str) -> None:
    values = frame.groupby("depth")["value"].min()
    marker = look.marker if line == "-" else ""
    axis.plot(values.index, values, color=look.colour, marker=marker, markersize=3, linewidth=0.8, linestyle=line)


def caption(rows: DataFrame) -> str:
    """The claim, where repair is clearly better than recalibration, and whether epsilon explains it."""
    return _statement(transitions(rows, _VIEW))


def _statement(points: list[Point]) -> str:
    sentences = []
    for model in dict.fromkeys(point.model for point in points):
        inside = [point for point in points if point.model == model]
        sentences.append((model, _told(inside)))
    return claims.statement("transition", findings.joined(sentences))


def _told(points: list[Point]) -> str:
    best = max(points, key=lambda point: point.gain.value)
    where = f"{percent(best.sparsity)} {labels.value('allocation', best.allocation)}"
    told = f"the largest gain over recalibration is {signed(best.gain)} points ({where}, repair {best.repair})"
    found = [point for point in points if point.recovers]
    if found:
        escapes = sum(point.escapes for point in found)
        places = ", ".join(f"{percent(each.sparsity)} {labels.value('allocation', each.allocation)}" for each in found)
        told += f"; clear in {len(found)} of {len(points)} settings ({places})"
        told += f", in {escapes} of which a smaller epsilon does it too"
    else:
        told += f"; it is clear in none of {len(points)} settings"
    least = min(points, key=lambda point: point.variance)
    if math.isfinite(least.variance):
        ratio = least.variance / least.epsilon
        told += f". The least variance that a norm reads is {least.variance:.2g}, {style.printed(ratio)} times epsilon"
        told += f"; up to {100 * max(point.faint for point in points):.0f}% of the channels of a norm are under it"
    return told
