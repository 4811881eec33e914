"""Test perplexity by window, from single matrices to the whole model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pandas import DataFrame

from freelunch.reporting import charts, claims, findings, labels, style
from freelunch.reporting.comparisons import Group, rows_of, varying
from freelunch.reporting.estimates import Estimate, of, ordered, summary
from freelunch.reporting.studies import of_matrices, windows

_VIEW = "figure window"
_LINES: tuple[tuple[charts.Line, bool], ...] = (("none", True), ("-", False))
"""Windows of matrices are no sizes of the same thing: their marks are not joined."""
_EXTRAS = {
    "biases + norms": "norms and biases trained",
    "norms": "norms trained",
    "biases": "biases trained",
    "frozen": "norms and biases frozen",
    "only": "",
}


@style.applied()
def draw(rows: DataFrame) -> Figure:
    """One line per parametrization; windows of matrices are marks beside it. Panels are criterion and pattern.

    Raises:
        FreelunchError: no runs differ in the window alone.
    """
    groups = windows(rows, _VIEW)
    found = charts.panels(groups)
    differing = [axis for axis in varying(group.setting for group in groups) if axis != "core"]
    names = list(dict.fromkeys(name for group in groups for name, _ in _series(group, differing)))
    sizes = [window for (window,) in ordered(pd.concat([group.runs for group in groups]), ["window"])]
    figure, axes = charts.axes_of(found, height=2.7)
    for axis, (_, inside) in zip(axes, found, strict=True):
        cells = []
        for group in inside:
            for name, points in _series(group, differing):
                place = names.index(name)
                shift = 0.16 * (place - (len(names) - 1) / 2) if len(names) < 6 else 0.0
                for line, matrices in _LINES:
                    part = [(sizes.index(w) + shift, cell) for w, cell in points if of_matrices(w) == matrices]
                    look = style.SERIES[place % len(style.SERIES)]
                    charts.marks(axis, [x for x, _ in part], [cell for _, cell in part], look, line)
                cells += [cell for _, cell in points]
        charts.framed(axis, cells, inside[0])
        axis.set_xticks(range(len(sizes)), [labels.value("window", size) for size in sizes], rotation=35, ha="right",
                        rotation_mode="anchor")  # fmt: skip
        axis.set_xlim(-0.6, len(sizes) - 0.4)
        axis.set_xlabel("Window")
    keys = [charts.key(name, style.SERIES[i % len(style.SERIES)], "-") for i, name in enumerate(names)]
    return charts.finish(figure, keys, _statement(groups))


def caption(rows: DataFrame) -> str:
    """The paper's claim and the perplexities found, window by window."""
    return _statement(windows(rows, _VIEW))


def selected(rows: DataFrame) -> DataFrame:
    """Perplexities of the runs that are compared."""
    return rows_of(windows(rows, _VIEW), rows)


def _statement(groups: list[Group]) -> str:
    differing = [axis for axis in varying(group.setting for group in groups) if axis != "core"]
    sentences = []
    for title, inside in charts.home(charts.panels(groups)):
        told = []
        for group in inside:
            for name, points in _series(group, differing):
                pairs = [(labels.value("window", window), cell) for window, cell in points]
                told.append(f"{name}: {findings.listed(pairs)}{_spread(points)}{_control(points)}")
        sentences.append((title, "; ".join([*told, findings.against(inside[0])])))
    return claims.statement("window", findings.joined(sentences))


def _series(group: Group, differing: Sequence[str]) -> list[tuple[str, list[tuple[str, Estimate]]]]:
    """The perplexities of a group by window, one series per parametrization of norms and biases."""
    found = []
    for (extras,) in ordered(group.runs, ["extras"]):
        runs = of(group.runs, ["extras"], [extras])
        points = [(window, summary(of(runs, ["window"], [window]))) for (window,) in ordered(runs, ["window"])]
        core = "" if group.setting["core"] == "full" else labels.value("parametrization", group.setting["core"])
        parts = [core, _EXTRAS.get(extras, extras), charts.named(group, differing)]
        name = ", ".join(part for part in parts if part)
        found.append((name[:1].upper() + name[1:], [(window, cell) for window, cell in points if cell is not None]))
    return found


def _spread(points: Sequence[tuple[str, Estimate]]) -> str:
    """How far apart the windows are that hold a submodule."""
    values = [cell.value for window, cell in points if not of_matrices(window)]
    if len(values) < 2 or not np.isfinite(values).all():
        return ""
    return f" (worst over best from attention / MLP up: {max(values) / min(values):.3g})"


def _control(points: Sequence[tuple[str, Estimate]]) -> str:
    """Key and up projections together against the same matrices, each for itself."""
    told = [f"{labels.value('window', window)} {findings.shown(cell)}" for window, cell in points
            if labels.is_control(window)]  # fmt: skip
    together = dict(points).get("key_up")
    if together is None or not told:
        return ""
    return f" ({labels.value('window', 'key_up')} {findings.shown(together)} against {', '.join(told)})"
