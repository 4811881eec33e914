"""What the figures of comparisons share: panels, marks, baselines, scales, the legend and the small print."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from textwrap import fill, wrap
from typing import Any, Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import blended_transform_factory

from freelunch.reporting import labels, style
from freelunch.reporting.comparisons import PRUNED, WHERE, Group, varying
from freelunch.reporting.estimates import Estimate, summary

PANEL = (*WHERE, *PRUNED)
Line = Literal["-", "none"] | tuple[float, Sequence[float]]
DASHES: Line = (0, (4, 2))
DOTS: Line = (0, (1, 1.5))
MIXED: Line = (0, (5, 1, 1, 1))
_LEAST = 0.2
"""Share of the height of a panel that the values compared have at least."""
Panel = tuple[str, list[Group]]


def panels(groups: Sequence[Group], within: Iterable[str] = ()) -> list[Panel]:
    """Groups by where they were measured and how they were pruned, with titles; first those on calibrated data.

    Args:
        groups: a comparison.
        within: axes that tell series of one panel apart.
    """
    apart = [axis for axis in PANEL if axis not in set(within)]
    differing = [axis for axis in varying(group.setting for group in groups) if axis in apart]
    found: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        found.setdefault(tuple(str(group.setting.get(axis)) for axis in apart), []).append(group)
    titled = [(title(inside[0].setting, differing), inside) for inside in found.values()]
    return sorted(titled, key=lambda panel: not _at_home(panel))


def title(setting: dict[str, Any], differing: Sequence[str]) -> str:
    """``Wanda, 2:4``, and below it the other axes that tell panels apart."""
    first = ", ".join(labels.value(axis, setting[axis]) for axis in ("criterion", "pattern") if axis in setting)
    # tokens follow from sequences
    skipped = ("criterion", "pattern", "calibration_tokens")
    rest = [axis for axis in differing if axis not in skipped and not pd.isna(setting[axis])]
    return "\n".join([first, *(labels.described(axis, setting[axis]) for axis in rest)])


def named(group: Group, differing: Iterable[str], default: str = "") -> str:
    """What a series is called: the axes in which it differs from the others of its figure."""
    told = [axis for axis in differing if axis not in PANEL and not pd.isna(group.setting.get(axis))]
    return ", ".join(labels.described(axis, group.setting[axis]) for axis in told) or default


def home(found: Sequence[Panel]) -> list[Panel]:
    """The panels measured on the data set that was calibrated with, or all if there is none."""
    return [panel for panel in found if _at_home(panel)] or [*found]


def _at_home(panel: Panel) -> bool:
    setting = panel[1][0].setting
    return bool(setting["dataset"] == setting.get("calibration"))


def axes_of(found: Sequence[Panel], height: float = 2.2, widest: int = 2) -> tuple[Figure, list[Axes]]:
    """A figure with one titled axes per panel; the left ones say what was measured, and on what if that is one."""
    lines = -(-len(found) // widest)
    width = -(-len(found) // lines)
    figure, axes = style.grid(lines, width, height)
    flat = [axis for row in axes for axis in row]
    for axis, panel in zip_longest(flat, found):
        if panel is None:
            axis.set_axis_off()
        else:
            axis.set_title(panel[0])
    settings = [panel[1][0].setting for panel in found]
    one = [axis for axis in ("dataset", "length") if len({str(setting[axis]) for setting in settings}) == 1]
    where = ", ".join(labels.described(axis, settings[0][axis]) for axis in one)
    for row in axes:
        row[0].set_ylabel("Test perplexity" + (f"\n({where})" if where else ""))
    return figure, flat[: len(found)]


def marks(axis: Axes, xs: Sequence[float], cells: Sequence[Estimate], look: style.Look, line: Line = "none") -> None:
    """Marks with their errors, joined by a line or not; what is not finite stands hollow at the upper end."""
    finite = [(x, cell) for x, cell in zip(xs, cells, strict=True) if math.isfinite(cell.value)]
    if finite:
        values = [cell.value for _, cell in finite]
        errors = [cell.stderr if math.isfinite(cell.stderr) else 0.0 for _, cell in finite]
        axis.errorbar(
            [x for x, _ in finite], values, yerr=errors, color=look.colour, marker=look.marker, linestyle=line,
            markersize=4.5, elinewidth=0.8, zorder=3,
        )  # fmt: skip
    top = blended_transform_factory(axis.transData, axis.transAxes)
    for x, cell in zip(xs, cells, strict=True):
        if not math.isfinite(cell.value):
            axis.plot(x, 0.93, look.marker, color=look.colour, fillstyle="none", transform=top, zorder=3)
            place: dict[str, Any] = {"xycoords": top, "xytext": (0, 4), "textcoords": "offset points"}
            axis.annotate(style.printed(cell.value), (x, 0.93), **place, ha="center", fontsize=6.5)


def framed(axis: Axes, cells: Iterable[Estimate | None], group: Group, alone: bool = True) -> None:
    """Logarithmic y axis around some values; the dense model is a dashed line, what is not recovered a dotted one.

    A line so far off that the values could not be told apart is an arrow at the edge that it lies behind.
    """
    shown = [cell for cell in cells if cell is not None and math.isfinite(cell.value) and cell.value > 0]
    ends = [end for cell in shown for end in _ends(cell)]
    low, high = min(ends, default=1.0), max(ends, default=10.0)
    span = max(math.log(high / low), 0.05)
    lines = [(summary(group.dense), style.BLACK, DASHES), *([(group.baseline(), style.GREY, DOTS)] if alone else [])]
    for cell, colour, line in lines:
        if cell is None:
            continue
        wider = (min(low, cell.value), max(high, cell.value)) if cell.value > 0 else (low, math.inf)
        if math.log(wider[1] / wider[0]) * _LEAST <= span:
            low, high = wider
            level(axis, cell.value, colour, line)
        else:
            below = cell.value < low
            said = style.printed(cell.value) + (" ↓" if below else " ↑" if cell.value > high else "")
            place: dict[str, Any] = {"transform": axis.transAxes, "va": "bottom" if below else "top", "fontsize": 6.5}
            axis.text(1.01, 0.0 if below else 1.0, said, color=colour, **place)
    style.log_scale(axis, low, high, margin=0.12)


def _ends(cell: Estimate) -> list[float]:
    """Where a mark's bar ends on a logarithmic scale."""
    error = cell.stderr if math.isfinite(cell.stderr) else 0.0
    return [end for end in (cell.value - error, cell.value, cell.value + error) if end > 0]


def level(axis: Axes, value: float, colour: str, line: Line, said: bool = True) -> None:
    """A horizontal line, with its value at the right unless that is said elsewhere."""
    axis.axhline(value, color=colour, linestyle=line, linewidth=0.9, zorder=1)
    if not said:
        return
    beside = blended_transform_factory(axis.transAxes, axis.transData)
    axis.text(1.01, value, style.printed(value), transform=beside, va="center", fontsize=6.5, color=colour)


def log_x(axis: Axes, values: Iterable[float], text: Callable[[float], str], label: str) -> None:
    """Logarithmic x axis with ticks at the values themselves, as far as their labels have room."""
    known = sorted({value for value in values if value > 0 and math.isfinite(value)}) or [1.0]
    low, high = math.log10(known[0]), math.log10(known[-1])
    wide = (high - low) or 1.0
    ticks: list[float] = []
    for value in known:
        if not ticks or math.log10(value / ticks[-1]) > 0.16 * wide:
            ticks.append(value)
    axis.set_xscale("log")
    axis.set_xlim(10 ** (low - 0.08 * wide), 10 ** (high + 0.08 * wide))
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: text(tick)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel(label)


def key(name: str, look: style.Look, line: Line = "none") -> Line2D:
    """A mark of the legend."""
    return Line2D([], [], color=look.colour, marker=look.marker, linestyle=line, markersize=4.5, label=name)


def finish(figure: Figure, keys: Sequence[Line2D], text: str, alone: bool = True) -> Figure:
    """Add the legend, with the baselines, and the small print."""
    lines = [Line2D([], [], color=style.BLACK, linestyle=DASHES, label="Dense")]
    lines += [Line2D([], [], color=style.GREY, linestyle=DOTS, label="Not recovered")] if alone else []
    return legend(figure, [*keys, *lines], text)


def legend(figure: Figure, keys: Sequence[Line2D], text: str) -> Figure:
    """Add a legend in as many columns as the width has room for, and the small print."""
    # of 7.5 points; a letter is about 0.56 as wide as high, and a mark takes 0.4 inches
    letter, mark, width = 0.0583, 0.4, figure.get_figwidth()
    for line in keys:
        line.set_label(fill(str(line.get_label()), int((width - mark) / letter)))
    lines = [str(line.get_label()).split("\n") for line in keys]
    widest = max(len(line) for label in lines for line in label) * letter + mark
    columns = max(1, min(len(keys), int(width / widest)))
    height = -(-len(keys) // columns) * 0.16 * max(map(len, lines))
    figure.set_figheight(figure.get_figheight() + max(0.0, height - 0.2))
    figure.legend(handles=list(keys), loc="outside upper center", ncols=columns)
    note(figure, text)
    return figure


def note(figure: Figure, text: str) -> None:
    """Small print under a figure, wrapped to its width; the figure grows by what it takes."""
    size, width = 6.5, figure.get_figwidth()
    # a letter of DejaVu Sans is about 0.5 of its size wide, a digit 0.64; a line is 1.25 high
    letters = int((width - 0.1) * 72 / (0.545 * size))
    lines = [line for part in text.split("\n") for line in wrap(part, letters, break_on_hyphens=False)]
    figure.set_figheight(figure.get_figheight() + len(lines) * 1.25 * size / 72 + 0.05)
    figure.supxlabel("\n".join(lines), x=0.05 / width, ha="left", fontsize=size, color="#333333", linespacing=1.25)
