"""Validation loss of every window over its training, relative to where it started."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from pandas import DataFrame

from .. import labels, style
from ..curves import curves
from ..estimates import ordered
from .panels import of, settings, title, wrapped


@style.applied()
def draw(rows: DataFrame) -> Figure:
    """One thin line per window, coloured by depth; columns are criterion and pattern, rows the kinds of window.

    Raises:
        FreelunchError: there are no reconstructed runs, or their losses are missing.
    """
    frame, extra = curves(rows, "figure validation_loss")
    names, panels = settings(frame, extra)
    parts = [part for _, part in ordered(frame.assign(window=frame["variant"]), ["window", "part"])]
    lines = wrapped(panels)
    figure, axes = style.grid(
        len(lines) * len(parts), len(lines[0]), height=1.35, sharex=True, sharey=True, width=_width(len(lines[0]))
    )
    # the end of viridis is too pale for thin lines on white
    colours = ListedColormap(colormaps["viridis"](np.linspace(0, 0.92, 256)))
    depth = Normalize(0, max(float(frame["last"].max()), 1.0))
    finite = frame["ratio"][np.isfinite(frame["ratio"]) & (frame["ratio"] > 0)]
    if len(finite):
        style.log_scale(axes[0][0], min(float(finite.min()), 0.9), max(float(finite.max()), 1.0))
    for line, shown in enumerate(lines):
        for row, part in enumerate(parts):
            for column, axis in enumerate(axes[line * len(parts) + row]):
                if column >= len(shown):
                    axis.set_axis_off()
                    continue
                windows = of(frame, (*names, "part"), (*shown[column], part))
                _panel(axis, windows, colours, depth)
                if row == 0:
                    axis.set_title(title(names, shown[column]))
                if column == 0:
                    axis.set_ylabel(f"{labels.value('window', part)}\nloss / initial loss")
    for axis in axes[-1]:
        axis.set_xlabel("Optimiser step")
    figure.colorbar(
        ScalarMappable(depth, colours), ax=[axis for row in axes for axis in row], label="Depth (block)", aspect=40, pad=0.01
    ).outline.set_visible(False)
    return figure


def _width(columns: int) -> float:
    return style.SINGLE if columns == 1 else style.DOUBLE


def _panel(axis: Axes, windows: DataFrame, colours: ListedColormap, depth: Normalize) -> None:
    lost = 0
    for _, window in windows.groupby("position", sort=False):
        curve = window.sort_values("step")
        known = np.isfinite(curve["ratio"].to_numpy(float))
        lost += not known.all()
        axis.plot(
            curve["step"][known].to_numpy(float),
            curve["ratio"][known].to_numpy(float),
            color=colours(depth(curve["depth"].iloc[0])),
            linewidth=0.6,
        )
    axis.axhline(1, color=style.GREY, linewidth=0.6, linestyle=(0, (2, 2)), zorder=1)
    if lost:
        axis.text(0.98, 0.04, f"{lost} not finite", transform=axis.transAxes, ha="right", va="bottom", fontsize=6.5)
