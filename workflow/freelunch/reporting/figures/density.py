"""Where allocations leave weights: density of every layer, beside how little a repair could undo there."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame

from freelunch.reporting import charts, claims, findings, labels, style
from freelunch.reporting.accuracies import percent, present
from freelunch.reporting.layers import per_layer

_VIEW = "figure density"
_COLUMNS = {"layer_density": "Density", "relative_repairability": "Residual / raw distortion"}


@style.applied()
def draw(rows: DataFrame) -> Figure:
    """One line per allocation over depth, at the highest sparsity; rows of panels are networks.

    Left the density of every layer, right its relative repairability. Both are means over seeds.

    Raises:
        FreelunchError: no classifier was pruned.
    """
    frames = {metric: per_layer(rows, metric, _VIEW) for metric in _COLUMNS}
    densities = frames["layer_density"]
    models, allocations = present(densities, "model"), present(densities, "allocation")
    looks = {each: style.SERIES[place % len(style.SERIES)] for place, each in enumerate(allocations)}
    figure, grid = style.grid(len(models), len(_COLUMNS), 1.9, width=style.DOUBLE)
    for row, model in zip(grid, models, strict=True):
        for axis, (metric, what) in zip(row, _COLUMNS.items(), strict=True):
            frame = frames[metric][frames[metric]["model"] == model]
            sparsity = max(frame["sparsity"])
            for allocation, look in looks.items():
                _line(axis, frame[(frame["sparsity"] == sparsity) & (frame["allocation"] == allocation)], look)
            axis.set_title(f"{model}, {percent(sparsity)}")
            axis.set_ylabel(what)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            if metric == "layer_density":
                shown = frame["value"][(frame["value"] > 0) & (frame["sparsity"] == sparsity)]
                style.log_scale(axis, float(shown.min()), float(shown.max()))
    style.label_columns(grid, "Depth (layer)")
    keys = [charts.key(labels.value("allocation", each), look, "-") for each, look in looks.items()]
    return charts.legend(figure, keys, _statement(densities))


def _line(axis: Axes, frame: DataFrame, look: style.Look) -> None:
    # of several seeds and backends of one pruned network the values are the same, or are averaged
    values = frame.groupby("depth")["value"].mean()
    shown = values[np.isfinite(values)]
    axis.plot(shown.index, shown, color=look.colour, marker=look.marker, markersize=3, linewidth=0.8)


def caption(rows: DataFrame) -> str:
    """What is claimed, and of every allocation its densest and its sparsest layers."""
    return _statement(per_layer(rows, "layer_density", _VIEW))


def _statement(frame: DataFrame) -> str:
    sentences = []
    for model in present(frame, "model"):
        inside = frame[frame["model"] == model]
        at = inside[inside["sparsity"] == inside["sparsity"].max()]
        told = []
        for allocation in present(at, "allocation"):
            means = at[at["allocation"] == allocation].groupby("position")["value"].mean()
            ends = f"{100 * means.min():.2g}% ({means.idxmin()}) to {100 * means.max():.3g}% ({means.idxmax()})"
            told.append(f"{labels.value('allocation', allocation)} {ends}")
        sentences.append((f"{model} at {percent(float(at['sparsity'].iloc[0]))}", ", ".join(told)))
    return claims.statement("allocation", "densities of layers. " + findings.joined(sentences))
