"""Gaps between criteria before and after recovery, against the size of the model."""

from __future__ import annotations

import math
from itertools import zip_longest
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas import DataFrame

from freelunch.reporting import charts, claims, findings, labels, style
from freelunch.reporting.comparisons import rows_of, varying
from freelunch.reporting.scales import SIDES, Point, Scale, scales
from freelunch.reporting.studies import criteria

_VIEW = "figure scale"
_LINES: dict[str, charts.Line] = {"before": charts.DASHES, "after": "-"}
_WIDEST = 46
"""Letters of a title that fit over one of two panels."""


@style.applied()
def draw(rows: DataFrame) -> Figure:
    """One panel per series, one colour per criterion: dashed before, solid after recovery. Both scales are logarithmic.

    The best criterion of a model has the gap 0, and no mark.

    Raises:
        FreelunchError: as ``scales.scales``.
    """
    found = scales(rows, _VIEW)
    compared = list(dict.fromkeys(name for scale in found for name in scale.criteria))
    looks = {name: style.SERIES[place % len(style.SERIES)] for place, name in enumerate(compared)}
    lines = -(-len(found) // 2)
    figure, grid = style.grid(lines, -(-len(found) // lines), 2.3)
    titles = _titles(found)
    for axis, scale, title in zip_longest([axis for row in grid for axis in row], found, titles):
        if scale is None:
            axis.set_axis_off()
            continue
        _panel(axis, scale, looks)
        axis.set_title(title)
    for row in grid:
        row[0].set_ylabel("Log perplexity over that\nof the best criterion (nats)")
    keys = [charts.key(labels.value("criterion", name), look) for name, look in looks.items()]
    keys += [Line2D([], [], color=style.GREY, linestyle=_LINES[side], label=f"{side.capitalize()} recovery")
             for side in SIDES]  # fmt: skip
    return charts.legend(figure, keys, _statement(found))


def _panel(axis: Axes, scale: Scale, looks: dict[str, style.Look]) -> None:
    shown: list[float] = []
    for name in scale.criteria:
        for side in SIDES:
            gaps = [(float(point.parameters), point.gaps[side][name]) for point in scale.points]
            apart = [(size, cell) for size, cell in gaps if not cell.value <= 0]
            charts.marks(axis, [size for size, _ in apart], [cell for _, cell in apart], looks[name], _LINES[side])
            shown += [cell.value for _, cell in apart if math.isfinite(cell.value)]
    charts.log_x(axis, [float(point.parameters) for point in scale.points], labels.compact, "Parameters of the model")
    style.log_scale(axis, min(shown, default=0.1), max(shown, default=1.0))


def caption(rows: DataFrame) -> str:
    """The paper's claim, which models are compared on what, and the largest gap of each before and after recovery."""
    return _statement(scales(rows, _VIEW))


def selected(rows: DataFrame) -> DataFrame:
    """Perplexities of the runs that are compared."""
    return rows_of(criteria(rows, _VIEW), rows)


def _statement(found: list[Scale]) -> str:
    sentences = []
    for title, scale in zip(_titles(found), found, strict=True):
        told = [f"{point.model} ({labels.compact(point.parameters)}) {_largest(point)}" for point in scale.points]
        # a gap then says less about size than about training
        warning = "" if scale.better else " (the dense perplexity of a larger model is higher: not of size alone)"
        sentences.append((title, "; ".join(told) + warning))
    read = "largest gap (nats) before and after recovery; the best has 0 and no mark. "
    return claims.statement("scale", read + _compared(found) + findings.joined(sentences))


def _compared(found: list[Scale]) -> str:
    """Which models stand in one series and on which criteria, where there are several families or sets of criteria."""
    differing = varying(scale.setting for scale in found)
    told = ["Series are of models of one family."] if "family" in differing else []
    if "criteria" in differing:
        told.append("Models are compared on the criteria that all have, and those with more once more on theirs.")
    return "".join(f"{sentence} " for sentence in told)


def _largest(point: Point) -> str:
    ends = {side: max(point.gaps[side].items(), key=lambda pair: pair[1].value) for side in SIDES}
    told = [f"{findings.shown(cell)} ({labels.value('criterion', name)})" for name, cell in ends.values()]
    return " to ".join(told)


def _titles(found: list[Scale]) -> list[str]:
    """``opt, 2:4``, and below it all else that tells the series apart."""
    differing = varying(scale.setting for scale in found)
    where = [axis for axis in ("dataset", "length") if axis in differing]
    named = [axis for axis in differing if axis not in ("family", *where)]
    return [_title(scale, [*where, *named], told="family" in differing) for scale in found]


def _title(scale: Scale, differing: list[str], told: bool) -> str:
    family = scale.setting["family"]
    lines = charts.title(scale.setting, differing).split("\n")
    lines[0] = ", ".join([*([family] if told and family else []), lines[0]])
    return "\n".join(fill(line, _WIDEST) for line in lines)
