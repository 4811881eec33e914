"""What reconstruction gained in every block: how far the validation loss fell below its initial value."""

from __future__ import annotations

from itertools import zip_longest

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame, Series

from freelunch.reporting import findings, labels, style
from freelunch.reporting.curves import gains
from freelunch.reporting.estimates import of
from freelunch.reporting.panels import parts, sentences, settings, title


@style.applied()
def draw(rows: DataFrame) -> Figure:
    """Gain over depth, one series per kind of window; panels are criterion and pattern.

    Raises:
        FreelunchError: there are no reconstructed runs, or their losses are missing.
    """
    frame, extra = gains(rows, "figure gain")
    frame = frame.assign(gain=100 * (1 - frame["ratio"]))
    names, lines = settings(frame, extra, widest=2)
    kinds = parts(frame)
    looks = style.looks(kinds)
    figure, axes = style.grid(len(lines), len(lines[0]), height=1.8, sharex=True, sharey=True)
    for line, row in zip(lines, axes, strict=True):
        for axis, panel in zip_longest(row, line):
            if panel is None:
                axis.set_axis_off()
                continue
            _panel(axis, of(frame, names, panel), looks)
            axis.set_title(title(names, panel))
        row[0].set_ylabel("Gain (% of initial\nvalidation loss)")
    gain = frame["gain"][np.isfinite(frame["gain"])]
    low, high = (min(0.0, float(gain.min())), max(float(gain.max()), 1.0)) if len(gain) else (0.0, 100.0)
    axes[0][0].set_ylim(low - 0.05 * (high - low) * (low < 0), high + 0.07 * (high - low))
    axes[0][0].xaxis.set_major_locator(MaxNLocator(integer=True))
    style.label_columns(axes, "Depth (block)")
    keys = [
        Line2D([], [], color=look.colour, marker=look.marker, markersize=3.5, label=labels.value("window", part))
        for part, look in looks.items()
    ]
    figure.legend(handles=keys, loc="outside upper center", ncols=min(len(keys), 3 if len(lines[0]) == 1 else 6))
    return figure


def caption(rows: DataFrame) -> str:
    """Of every setting and kind of window the median gain, and the lowest and the highest over depth."""
    frame, extra = gains(rows, "figure gain")
    told = findings.joined(sentences(frame[frame["ratio"].notna()], extra, _gain))
    return f"Here: median fall of the validation loss, lowest to highest, over windows. {told}"


def _gain(ratio: Series) -> str:
    gain = 100 * (1 - ratio)
    return f"{gain.median():.0f}% ({gain.min():.0f} to {gain.max():.0f})"


def _panel(axis: Axes, windows: DataFrame, looks: dict[str, style.Look]) -> None:
    finite = np.isfinite(windows["gain"].to_numpy(float))
    for part, look in looks.items():
        series = windows[finite & (windows["part"] == part).to_numpy(bool)].sort_values("first")
        depth, gain = series["depth"].to_numpy(float), series["gain"].to_numpy(float)
        axis.plot(depth, gain, color=look.colour, marker=look.marker, markersize=3, linewidth=0.8)
        if (series["last"] > series["first"]).any():
            axis.hlines(gain, series["first"], series["last"], colors=look.colour, linewidth=2)
    if not finite.all():
        lost = f"{style.counted(int((~finite).sum()), 'window')} not finite"
        axis.text(0.98, 0.04, lost, transform=axis.transAxes, ha="right", va="bottom", fontsize=6.5)
