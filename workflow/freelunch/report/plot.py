"""How figures look: panels of series as numbers, drawn in one way, with the same bytes for the same numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple, cast

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import blended_transform_factory
from pandas import DataFrame

from freelunch.errors import FreelunchError
from freelunch.report import text
from freelunch.report.compare import Estimate
from freelunch.report.views import View

SINGLE, DOUBLE = 3.35, 6.9
"""Widths of one and of two columns of a paper, in inches."""
_TALLEST = 150
"""Inches. Image formats end at 65,535 pixels; nobody reads so far."""
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE, GREY = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#767676",
)  # fmt: skip
"""Safe for colour-blind readers."""
Line = str | tuple[float, Sequence[float]]
DASHES: Line = (0, (4, 2))
DOTS: Line = (0, (1, 1.5))
MIXED: Line = (0, (5, 1, 1, 1))
NONE = "none"
_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs on every machine
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7.5, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "axes.grid": True, "axes.grid.axis": "y",
    "axes.axisbelow": True, "grid.color": "#E3E3E3", "grid.linewidth": 0.5, "lines.linewidth": 1.0,
    "errorbar.capsize": 0, "figure.constrained_layout.use": True, "savefig.dpi": 200, "pdf.fonttype": 42,
    "svg.fonttype": "path", "svg.hashsalt": "freelunch",
}  # fmt: skip
_METADATA: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {"Software": None}}
_STEPS: tuple[tuple[float, tuple[float, ...]], ...] = (
    (0.15, (*np.arange(1, 2, 0.1).round(1), *np.arange(2, 5, 0.2).round(1), *np.arange(5, 10, 0.5))),
    (0.5, (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)),
    (1.3, (1, 2, 3, 5, 7)),
    (2.6, (1, 2, 5)),
    (4, (1, 3)),
    (math.inf, (1,)),
)
"""Which multiples of powers of ten are ticks, on scales of up to so many decades."""
_LEAST = 0.2
"""Share of the height of a panel that the values compared have at least."""
_KEYS = 6
"""Rows of a legend; where it would have more, lines are labelled at their ends."""
_LETTER = 0.064
"""Inches that a letter of 8 points takes."""


class Look(NamedTuple):
    """Colour and marker of a series."""

    colour: str
    marker: str = ""


LOOKS = {
    "none": Look(GREY, "D"), "matrix_exact": Look(PURPLE, "p"), "matrix": Look(ORANGE, "X"),
    "official_matrix": Look(BLACK, "x"), "key_up": Look(GREEN, "^"), "attention_mlp": Look(BLUE, "o"),
    "attention": Look(BLUE, "o"), "mlp": Look(SKY, "v"), "block": Look(VERMILLION, "s"), "model": Look(BLACK, "d"),
    "retrain": Look(SKY, "<"),
}  # fmt: skip
SERIES = (
    Look(BLUE, "o"), Look(VERMILLION, "s"), Look(GREEN, "^"), Look(PURPLE, "P"), Look(ORANGE, "X"), Look(SKY, "v"),
    Look(BLACK, "*"), Look(GREY, "h"), Look(BLUE, "<"), Look(VERMILLION, ">"), Look(GREEN, "v"), Look(ORANGE, "o"),
)  # fmt: skip
"""Looks of series without a meaning of their own."""


def looks(names: Sequence[str]) -> dict[str, Look]:
    """A look for each name: variants always the same, others in the order given, first in colours that are free."""
    used = [LOOKS[name] for name in names if name in LOOKS]
    colours = {look.colour for look in used}
    spare = cycle(sorted((look for look in SERIES if look not in used), key=lambda look: look.colour in colours))
    return {name: LOOKS[name] if name in LOOKS else next(spare) for name in names}


def strokes(looks: Sequence[Look]) -> list[Line]:
    """Solid for the first line of a colour, another for each further one: between its marks a line has nothing else."""
    seen: Counter[str] = Counter()
    lines = []
    for look in looks:
        lines.append(("-", DASHES, DOTS, MIXED)[seen[look.colour] % 4])
        seen[look.colour] += 1
    return lines


@dataclass(frozen=True)
class Series:
    """Marks, joined by a line or not.

    Attributes:
        name: in the legend; one look per name.
        hollow: marks, which are then larger.
        spans: of each mark, half the width of what it stands for.
        every: so many of a line have a mark, from the first given, so that marks of lines do not hide each other.
    """

    name: str
    points: Sequence[tuple[float, Estimate]]
    look: Look
    line: Line = NONE
    hollow: bool = False
    spans: Sequence[float] = ()
    every: tuple[int, int] | None = None
    size: float = 4.5


class Level(NamedTuple):
    """A line across, with its value beside it if it is to be said."""

    name: str
    value: float
    look: Look = Look(BLACK)
    line: Line = DASHES
    said: bool = True


@dataclass(frozen=True)
class Panel:
    """A panel with its scales.

    Attributes:
        ticks: names of the places 0, 1, … on the x axis.
        log_x: text of its ticks, if the x axis is logarithmic.
        limits: of the y axis, where series do not give them.
        printed: values stand above their marks.
        counts: what points are called that are not finite and counted; else they stand hollow at the top.
        many: lines without marks by depth, each steps and values.
        squeezed: leave out of the scale a level that is so far off that values could not be told apart.
    """

    title: str
    series: list[Series]
    x: str
    y: str
    levels: list[Level] = field(default_factory=list)
    ticks: list[str] | None = None
    log_x: Callable[[float], str] | None = None
    log_y: bool = True
    limits: tuple[float, float] | None = None
    printed: bool = False
    counts: str = ""
    many: list[tuple[float, np.ndarray[Any, np.dtype[np.float64]]]] | None = None
    squeezed: bool = False


@dataclass(frozen=True)
class Drawing:
    """A figure as numbers: panels, how many are side by side, and what its caption says.

    Attributes:
        lines: series are lines that may be labelled at their ends.
        shared: panels have the same scales, and their axes are labelled at the edges alone.
        depth: the largest, where lines are coloured by it.
        custom: draws the figure instead, where it is no panels of series.
        notes: sentences for the caption.
        runs: the rows whose protocol the caption tells.
    """

    view: View
    panels: list[Panel]
    runs: DataFrame
    columns: int = 2
    height: float = 2.2
    shared: bool = False
    lines: bool = False
    depth: float | None = None
    keys: tuple[Series | Level, ...] = ()
    custom: Callable[[], Figure] | None = None
    notes: tuple[str, ...] = ()


@contextmanager
def applied() -> Iterator[None]:
    """Draw and save in this style, whatever the user's own matplotlib settings."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, _RC))
        yield


def save(drawing: Drawing, stem: Path) -> None:
    """Write ``stem`` as PDF, SVG and PNG (200 dpi)."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    figure = draw(drawing)
    with applied():
        for kind, metadata in _METADATA.items():
            figure.savefig(stem.with_name(f"{stem.name}.{kind}"), metadata=metadata)


def grid(rows: int, columns: int, height: float, width: float, **shared: Any) -> tuple[Figure, Any]:
    """A figure of ``rows x columns`` axes; ``height`` is that of one row in inches, ``width`` the whole figure's.

    Raises:
        FreelunchError: it would be taller than an image can be.
    """
    if rows * height > _TALLEST:
        raise FreelunchError(f"a figure of {rows} rows of panels is too tall; ask for it in a suite of fewer settings")
    figure = Figure(figsize=(width, rows * height + 0.5))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def draw(drawing: Drawing) -> Figure:
    """The figure of a drawing."""
    with applied():
        if drawing.custom is not None:
            return drawing.custom()
        rows = -(-len(drawing.panels) // drawing.columns)
        columns = -(-len(drawing.panels) // rows)
        keys = _keys(drawing)
        most = max(len(panel.ticks or ()) for panel in drawing.panels)
        narrow = columns == 1 and most < 8 and len(keys) <= _KEYS * _columns(keys, SINGLE)
        width = SINGLE if narrow else DOUBLE
        figure, axes = grid(rows, columns, drawing.height, width, sharex=drawing.shared, sharey=drawing.shared)
        labelled = drawing.lines and len(keys) > _KEYS * _columns(keys, width)
        room = width - (0.055 * max(len(str(key.get_label())) for key in keys) if labelled else 0)
        for index, axis in enumerate(axes.flat):
            if index >= len(drawing.panels):
                axis.set_axis_off()
                continue
            panel, last = drawing.panels[index], (index + 1) % columns == 0 or index + 1 == len(drawing.panels)
            _draw(axis, panel, room / columns, drawing.depth, labelled and last)
            left = index % columns == 0 or panel.y != drawing.panels[index - 1].y
            axis.set_ylabel(panel.y if left else "")
            lowest = index + columns >= len(drawing.panels)
            axis.set_xlabel(panel.x if lowest or not drawing.shared else "")
            axis.tick_params(axis="x", labelbottom=lowest or not drawing.shared)
        if drawing.depth is not None:
            bar = figure.colorbar(ScalarMappable(Normalize(0, drawing.depth), _COLOURS), ax=list(axes.flat), pad=0.01,
                                  label="Depth (block)", ticks=MaxNLocator(integer=True),
                                  aspect=12 * figure.get_figheight())  # fmt: skip
            bar.outline.set_visible(False)
        elif keys and not labelled:
            _legend(figure, keys)
    return figure


# the end of viridis is too pale for thin lines on white
_COLOURS = ListedColormap(colormaps["viridis"](np.linspace(0, 0.92, 256)))


def _draw(axis: Axes, panel: Panel, width: float, depth: float | None, labelled: bool) -> None:
    letters = max(16, int((width - 0.4) / _LETTER))
    axis.set_title("\n".join(fill(line, letters) for line in panel.title.split("\n")))
    _scale_y(axis, panel)
    ends: list[tuple[float, str, str]] = []
    lost = 0
    for series in panel.series:
        lost += _marks(axis, panel, series)
        if labelled and series.name and (shown := [(x, cell) for x, cell in series.points if _drawable(panel, cell)]):
            ends.append((max(shown)[1].value, series.name, series.look.colour))
    if panel.many is not None:
        curves = [curve[np.isfinite(curve).all(axis=1)] for _, curve in panel.many]
        shades = [_COLOURS(at / (depth or 1.0)) for at, _ in panel.many]
        axis.add_collection(LineCollection(curves, colors=shades, linewidths=0.6))
        axis.autoscale_view(scaley=False)
        lost += sum(not np.isfinite(curve).all() for _, curve in panel.many)
    for level in panel.levels:
        ends += _level(axis, level)
    _beside(axis, ends)
    if lost:
        axis.text(0.98, 0.04, f"{text.counted(lost, panel.counts)} not finite", transform=axis.transAxes, ha="right",
                  va="bottom", fontsize=6.5)  # fmt: skip
    _scale_x(axis, panel, width)


def _drawable(panel: Panel, cell: Estimate) -> bool:
    return math.isfinite(cell.value) and (cell.value > 0 or not panel.log_y)


def _marks(axis: Axes, panel: Panel, series: Series) -> int:
    """Draw marks with their errors; return how many are counted instead."""
    shown = [index for index, (_, cell) in enumerate(series.points) if _drawable(panel, cell)]
    look, rest = series.look, [point for point in series.points if not _drawable(panel, point[1])]
    if shown:
        xs, cells = zip(*(series.points[index] for index in shown), strict=True)
        errors, spans = [cell.error for cell in cells], [series.spans[index] for index in shown if series.spans]
        axis.errorbar(
            xs, [cell.value for cell in cells], yerr=errors if any(errors) else None,
            xerr=spans if any(spans) else None, elinewidth=2 if any(spans) else 0.8,
            color=look.colour, marker=look.marker, linestyle=cast(Any, series.line),
            fillstyle="none" if series.hollow else "full", markeredgewidth=0.7 if series.hollow else None,
            markersize=1.6 * series.size if series.hollow else series.size, markevery=series.every, zorder=3,
        )  # fmt: skip
    above: dict[str, Any] = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center", "fontsize": 6.5}
    if panel.printed and shown:
        for x, cell in zip(xs, cells, strict=True):
            axis.annotate(text.printed(cell.value), (x, cell.value + cell.error), **above)
    if panel.counts:
        return len(rest)
    top = blended_transform_factory(axis.transData, axis.transAxes)
    for x, cell in rest:
        axis.plot(x, 0.92, look.marker, color=look.colour, fillstyle="none", transform=top, zorder=3, markersize=4.5)
        axis.annotate(text.printed(cell.value), (x, 0.92), xycoords=top, **above)
    return 0


def _scale_y(axis: Axes, panel: Panel) -> None:
    """A scale around the values; logarithmic with plain numbers as ticks. It goes before what is drawn."""
    cells = [cell for series in panel.series for _, cell in series.points if _drawable(panel, cell)]
    ends = [
        end
        for cell in cells
        for end in (cell.value - cell.error, cell.value + cell.error)
        if end > 0 or not panel.log_y
    ]
    ends += panel.limits or ()
    low, high = (min(ends), max(ends)) if ends else (1.0, 10.0)
    width = math.log if panel.log_y else float
    for level in panel.levels:
        wider = min(low, level.value), max(high, level.value)
        if not math.isfinite(level.value) or (panel.log_y and level.value <= 0):
            continue
        if not panel.squeezed or (width(wider[1]) - width(wider[0])) * _LEAST <= max(width(high) - width(low), 0.05):
            low, high = wider
    above = 0.14 if panel.printed else 0.08
    if panel.log_y:
        low, high = (low / 1.3, high * 1.3) if low == high else (low, high)
        decades = math.log10(high / low)
        bottom, top = math.log10(low) - 0.08 * decades, math.log10(high) + above * decades
        axis.set_yscale("log")
        axis.set_ylim(10**bottom, 10**top)
        axis.yaxis.set_major_locator(FixedLocator(ticks(bottom, top)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda at, _: text.tick(at)))
        axis.yaxis.set_minor_locator(NullLocator())
    else:
        room = (high - low) or 1.0
        axis.set_ylim(low - 0.06 * room, high + above * room)


def _scale_x(axis: Axes, panel: Panel, width: float) -> None:
    if panel.ticks is not None:
        letters = int((width - 0.6) / _LETTER / max(len(panel.ticks), 1))
        words = [word for name in panel.ticks for word in name.split()]
        if words and max(map(len, words)) > letters:
            axis.set_xticks(range(len(panel.ticks)), panel.ticks, rotation=35, ha="right", rotation_mode="anchor")
        else:
            lines = ["\n".join(fill(line, letters) for line in name.split("\n")) for name in panel.ticks]
            axis.set_xticks(range(len(lines)), lines)
        axis.tick_params(axis="x", length=0)
        axis.set_xlim(-0.5, len(panel.ticks) - 0.5)
        for border in range(1, len(panel.ticks)):
            axis.axvline(border - 0.5, color="#E3E3E3", linewidth=0.5, zorder=0)
    elif panel.log_x is not None:
        label = panel.log_x
        xs = [x for series in panel.series for x, _ in series.points if x > 0 and math.isfinite(x)] or [1.0]
        low, high = math.log10(min(xs)), math.log10(max(xs))
        room = 0.08 * (high - low) or 0.15
        axis.set_xscale("log")
        axis.set_xlim(10 ** (low - room), 10 ** (high + room))
        most = max(2, int(width / 0.65))
        axis.xaxis.set_major_locator(FixedLocator(ticks(low - room, high + room, most)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda at, _: label(at)))
        axis.xaxis.set_minor_locator(NullLocator())
    else:
        low, high = axis.get_xlim()
        if high - low < 1:
            axis.set_xlim(low - 0.5, high + 0.5)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def ticks(bottom: float, top: float, most: int = 10) -> list[float]:
    """Round numbers between two powers of ten, as many as have room."""
    powers = range(math.floor(bottom), math.ceil(top) + 1)
    multiples: list[float] = []
    for widest, steps in _STEPS:
        every = [step * 10.0**power for power in powers for step in steps]
        multiples = [at for at in every if bottom <= math.log10(at) <= top]
        if top - bottom < widest and len(multiples) <= most:
            break
    return multiples[:: -(-len(multiples) // most)] if len(multiples) > most else multiples


def _level(axis: Axes, level: Level) -> list[tuple[float, str, str]]:
    """Draw a line across, or an arrow at the edge that it lies behind; return what is to be said beside it."""
    low, high = axis.get_ylim()
    if not math.isfinite(level.value) or low <= level.value <= high:
        if math.isfinite(level.value):
            axis.axhline(level.value, color=level.look.colour, linestyle=cast(Any, level.line), linewidth=0.9, zorder=1)
        return [(level.value, text.printed(level.value), level.look.colour)] if level.said else []
    below = level.value < low
    said = f"{text.printed(level.value)} {'↓' if below else '↑'}"
    return [(low if below else high, said, level.look.colour)]


def _beside(axis: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Words at the right of a panel, at the height of what they are about, but not over each other."""
    if not ends:
        return
    to_axes = (axis.transData + axis.transAxes.inverted()).transform
    at = [float(to_axes((1 if axis.get_xscale() == "log" else 0, value))[1]) if math.isfinite(value) else 1.0
          for value, _, _ in ends]  # fmt: skip
    order = np.argsort(at, kind="stable")
    # of 6.5 points, in shares of the panel's height
    line = 1.25 * 6.5 / 72 / max(0.5, axis.get_window_extent().height / axis.figure.dpi)
    # least squares under the distance of a line: means of neighbours that would be too close
    means: list[tuple[float, int]] = []
    for index, height in enumerate(np.array(at)[order]):
        mean, count = float(height) - index * line, 1
        while means and means[-1][0] > mean:
            above, many = means.pop()
            mean, count = (above * many + mean * count) / (many + count), many + count
        means.append((mean, count))
    heights = [mean for mean, count in means for _ in range(count)] + line * np.arange(len(at))
    heights = heights - max(0.0, float(heights[-1]) - 1.0)
    for index, height in zip(order, heights, strict=True):
        _, words, colour = ends[index]
        axis.text(1.015, height, words, transform=axis.transAxes, va="center", fontsize=6.5, color=colour)


def _keys(drawing: Drawing) -> list[Line2D]:
    """One key per name, in the order of panels."""
    keys: dict[str, Line2D] = {}
    series = [each for panel in drawing.panels for each in panel.series]
    levels = [each for panel in drawing.panels for each in panel.levels]
    for each in (*series, *drawing.keys, *levels):
        if each.name and each.name not in keys:
            hollow = isinstance(each, Series) and each.hollow
            keys[each.name] = Line2D([], [], color=each.look.colour, marker=each.look.marker, label=each.name,
                                      linestyle=cast(Any, each.line), markersize=7 if hollow else 4.5,
                                      fillstyle="none" if hollow else "full")  # fmt: skip
    return list(keys.values())


def _columns(keys: Sequence[Line2D], width: float) -> int:
    # of 7.5 points; a letter is about 0.56 as wide as high, and a mark takes 0.4 inches
    widest = max((len(str(key.get_label())) for key in keys), default=1) * 0.0583 + 0.4
    return max(1, min(len(keys), int(width / widest)))


def _legend(figure: Figure, keys: Sequence[Line2D]) -> None:
    width = figure.get_figwidth()
    for key in keys:
        key.set_label(fill(str(key.get_label()), int((width - 0.4) / 0.0583)))
    columns = _columns(keys, width)
    rows = -(-len(keys) // columns)
    figure.set_figheight(figure.get_figheight() + max(0.0, 0.16 * rows - 0.2))
    figure.legend(handles=list(keys), loc="outside upper center", ncols=columns)
