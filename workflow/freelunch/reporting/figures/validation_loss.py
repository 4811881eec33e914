"""Validation loss of every window over its training, relative to where it started."""

from __future__ import annotations

from itertools import zip_longest

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame, Series

from freelunch.reporting import findings, labels, style
from freelunch.reporting.curves import curves
from freelunch.reporting.estimates import of
from freelunch.reporting.panels import parts, sentences, settings, title


@style.applied()
def draw(rows: DataFrame) -> Figure:
    """One thin line per window, coloured by depth; columns are criterion and pattern, rows the kinds of window.

    Raises:
        FreelunchError: there are no reconstructed runs, or their losses are missing.
    """
    frame, extra = curves(rows, "figure validation_loss")
    names, lines = settings(frame, extra, widest=4)
    kinds = parts(frame)
    shown = [
        (line, [part for part in kinds if any(len(of(frame, (*names, "part"), (*panel, part))) for panel in line)])
        for line in lines
    ]
    placed = [(line, part, part == found[0]) for line, found in shown for part in found]
    figure, axes = style.grid(len(placed), len(lines[0]), height=1.35, sharex=True, sharey=True)
    # the end of viridis is too pale for thin lines on white
    colours = ListedColormap(colormaps["viridis"](np.linspace(0, 0.92, 256)))
    depth = Normalize(0, max(float(frame["last"].max()), 1.0))
    finite = frame["ratio"][np.isfinite(frame["ratio"]) & (frame["ratio"] > 0)]
    if len(finite):
        style.log_scale(axes[0][0], min(float(finite.min()), 0.9), max(float(finite.max()), 1.0))
    for row, (line, part, first) in zip(axes, placed, strict=True):
        for axis, panel in zip_longest(row, line):
            if panel is None:
                axis.set_axis_off()
                continue
            _panel(axis, of(frame, (*names, "part"), (*panel, part)), colours, depth)
            if first:
                axis.set_title(title(names, panel))
        row[0].set_ylabel(f"{labels.value('window', part)}\nloss / initial loss")
    style.label_columns(axes, "Optimiser step")
    figure.colorbar(
        ScalarMappable(depth, colours),
        ax=[axis for row in axes for axis in row],
        label="Depth (block)",
        ticks=MaxNLocator(integer=True),
        aspect=12 * figure.get_figheight(),
        pad=0.01,
    ).outline.set_visible(False)
    return figure


def caption(rows: DataFrame) -> str:
    """Of every setting and kind of window, where training ended, and how many windows ended above where they began."""
    frame, extra = curves(rows, "figure validation_loss")
    by = [*extra, "criterion", "pattern", "variant", "position"]
    last = frame.sort_values("step", kind="stable").groupby(by, dropna=False).tail(1)
    read = (
        "median over windows of the last validation loss over the initial one; above: it ended above where it began. "
    )
    return f"Here: {read}{findings.joined(sentences(last, extra, _end))}"


def _end(ratio: Series) -> str:
    """Windows that ended at no number count as above."""
    return f"{ratio.median():.2f} ({int((~(ratio <= 1)).sum())} of {len(ratio)} above)"


def _panel(axis: Axes, windows: DataFrame, colours: ListedColormap, depth: Normalize) -> None:
    lines, shades, lost = [], [], 0
    for _, window in windows.groupby("position", sort=False):
        curve = window.sort_values("step")[["step", "ratio"]].to_numpy(float)
        known = np.isfinite(curve).all(axis=1)
        lost += not known.all()
        lines.append(curve[known])
        shades.append(colours(depth(float(window["depth"].iloc[0]))))
    axis.add_collection(LineCollection(lines, colors=shades, linewidths=0.6))
    axis.autoscale_view()
    axis.axhline(1, color=style.GREY, linewidth=0.6, linestyle=(0, (2, 2)), zorder=1)
    if lost or not lines:
        text = f"{style.counted(lost, 'window')} not finite" if lines else "no such run"
        axis.text(0.98, 0.04, text, transform=axis.transAxes, ha="right", va="bottom", fontsize=6.5)
