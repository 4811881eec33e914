"""The repair-sensitive transition: what repair gains over recalibration, and what norms read against their epsilon."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame

from .. import charts, claims, findings, labels, style
from ..accuracies import CONTROL, RECALIBRATED, percent, present, signed
from ..layers import per_layer
from ..transitions import Point, transitions

_VIEW = "figure transition"


@style.applied()
def draw(rows: DataFrame) -> Figure:
    """Rows of panels are networks. Left the gain of the best repair over recalibration alone against sparsity, and
    (hollow) that of recalibration with a smaller epsilon; right the least variance that each norm reads at the highest
    sparsity, over depth, and the norms' epsilon.

    Raises:
        FreelunchError: no pruned classifier was measured.
    """
    points, frame = transitions(rows, _VIEW), per_layer(rows, "least_variance", _VIEW)
    frame = frame[frame["backend"] == RECALIBRATED]
    models, allocations = present(frame, "model"), present(frame, "allocation")
    looks = {each: style.SERIES[place % len(style.SERIES)] for place, each in enumerate(allocations)}
    figure, grid = style.grid(len(models), 2, 1.9, width=style.DOUBLE)
    for (left, right), model in zip(grid, models, strict=True):
        for allocation, look in looks.items():
            _gains(left, [p for p in points if (p.model, p.allocation) == (model, allocation)], look)
            inside = frame[(frame["model"] == model) & (frame["allocation"] == allocation)]
            _variances(right, inside[inside["sparsity"] == inside["sparsity"].max()], look)
        left.axhline(0, color=style.GREY, linewidth=0.6, zorder=1)
        reach = [end for p in points if p.model == model for end in _reach(p)]
        room = 0.12 * max(1.0, max(reach) - min(reach))
        left.set_ylim(min(-1.0, *reach) - room, max(1.0, *reach) + room)
        left.set_ylabel("Gain over recalibration\n(points of accuracy)")
        left.set_title(model)
        shown = frame[frame["model"] == model]["value"]
        epsilon = next(p.epsilon for p in points if p.model == model)
        style.log_scale(right, min(epsilon, float(shown.min())), max(epsilon, float(shown.max())), margin=0.08)
        charts.level(right, epsilon, style.BLACK, charts.DASHES, said=False)
        right.set_ylabel("Least variance of a channel\nthat the norm reads")
        right.set_title(f"{model}, {percent(float(frame[frame['model'] == model]['sparsity'].max()))}")
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.label_columns([[row[0]] for row in grid], "Sparsity (%)")
    style.label_columns([[row[1]] for row in grid], "Depth (norm)")
    keys = [charts.key(labels.value("allocation", each), look, "-") for each, look in looks.items()]
    hollow = charts.key(labels.value("backend", CONTROL), style.Look(style.GREY, "o"))
    hollow.set_fillstyle("none")
    level = charts.key("Epsilon of the norms", style.Look(style.BLACK, ""), charts.DASHES)
    return charts.legend(figure, [*keys, hollow, level], _statement(points))


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


def _variances(axis: Axes, frame: DataFrame, look: style.Look) -> None:
    values = frame.groupby("depth")["value"].min()
    axis.plot(values.index, values, color=look.colour, marker=look.marker, markersize=3, linewidth=0.8)


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
        told += (
            f"; clear in {len(found)} of {len(points)} settings, in {escapes} of which a smaller epsilon does it too"
        )
    else:
        told += f"; it is clear in none of {len(points)} settings"
    least = min(points, key=lambda point: point.variance)
    if math.isfinite(least.variance):
        ratio = least.variance / least.epsilon
        told += f". The least variance that a norm reads is {least.variance:.2g}, {style.printed(ratio)} times epsilon"
    return told
