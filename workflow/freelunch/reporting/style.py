"""One look for all figures: sizes of a two-column paper, colours safe for colour-blind readers, reproducible bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from freelunch.errors import FreelunchError

SINGLE, DOUBLE = 3.35, 6.9
"""Widths of one and of two columns of a paper, in inches."""

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GREY = "#767676"

_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs on every machine
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.0,
    "lines.markersize": 5,
    "errorbar.capsize": 0,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "freelunch",
}
_METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
    "png": {"Software": None},
}


_STEPS: tuple[tuple[float, tuple[float, ...]], ...] = (
    (0.15, (1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2, 2.2, 2.4, 2.6, 2.8, 3, 3.2, 3.4, 3.6, 3.8, 4, 4.2, 4.4,
            4.6, 4.8, 5, 5.5, 6, 6.5, 7, 7.5, 8, 8.5, 9, 9.5)),
    (0.5, (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)),
    (1.3, (1, 2, 3, 5, 7)),
    (3.5, (1, 2, 5)),
    (math.inf, (1,)),
)  # fmt: skip
"""Which multiples of powers of ten are ticks, on scales of up to so many decades."""


class Look(NamedTuple):
    """Colour and marker of a series."""

    colour: str
    marker: str


_TALLEST = 150
"""Inches. Image formats end at 65,535 pixels; nobody reads so far."""

LOOKS = {
    "none": Look(GREY, "D"),
    "matrix_exact": Look(PURPLE, "p"),
    "matrix": Look(ORANGE, "X"),
    "official_matrix": Look(BLACK, "x"),
    "key_up": Look(GREEN, "^"),
    "attention_mlp": Look(BLUE, "o"),
    "attention": Look(BLUE, "o"),
    "mlp": Look(SKY, "v"),
    "block": Look(VERMILLION, "s"),
    "model": Look(BLACK, "d"),
    "retrain": Look(SKY, "<"),
}
SERIES = (
    Look(BLUE, "o"), Look(VERMILLION, "s"), Look(GREEN, "^"), Look(PURPLE, "P"), Look(ORANGE, "X"), Look(SKY, "v"),
    Look(BLACK, "*"), Look(GREY, "h"), Look(BLUE, "<"), Look(VERMILLION, ">"),
)  # fmt: skip
"""Looks of series without a meaning of their own, in the order given."""
_OTHERS = (
    *(look for look in SERIES[2:] if look not in LOOKS.values()),
    Look(GREEN, "v"), Look(SKY, "s"), Look(ORANGE, "o"),
)  # fmt: skip


def looks(series: Sequence[str]) -> dict[str, Look]:
    """A look for each series: the known ones always the same, the others in the order given."""
    others = [name for name in series if name not in LOOKS]
    return {name: LOOKS[name] if name in LOOKS else _OTHERS[others.index(name) % len(_OTHERS)] for name in series}


@contextmanager
def applied() -> Iterator[None]:
    """Draw and save in this style, whatever the user's own matplotlib settings; also a decorator."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, _RC))
        yield


def grid(
    rows: int, columns: int, height: float, width: float | None = None, **shared: Any
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of ``rows x columns`` axes; ``height`` is that of one row in inches, ``width`` the whole figure's.

    Raises:
        FreelunchError: it would be taller than an image can be.
    """
    if rows * height > _TALLEST:
        raise FreelunchError(f"a figure of {rows} rows of panels is too tall; ask for it in a suite of fewer settings")
    figure = Figure(figsize=(width or (SINGLE if columns == 1 else DOUBLE), rows * height + 0.5))
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **shared)
    return figure, [list(row) for row in axes]


def label_columns(axes: Sequence[Sequence[Axes]], text: str) -> None:
    """Label the x axis of the lowest panel of every column, where panels below it may be missing."""
    for column in zip(*axes, strict=True):
        lowest = [axis for axis in column if axis.axison][-1]
        lowest.set_xlabel(text)
        lowest.tick_params(axis="x", labelbottom=True)


def log_scale(axis: Axes, low: float, high: float, margin: float = 0.06) -> None:
    """Logarithmic y axis from ``low`` to ``high`` with labels that read as plain numbers: 20, 50, 100, 200."""
    low, high = (low / 1.3, high * 1.3) if low == high else (low, high)
    pad = margin * math.log10(high / low)
    bottom, top = math.log10(low) - pad, math.log10(high) + pad
    decades = top - bottom
    steps = next(steps for widest, steps in _STEPS if decades < widest)
    powers = range(math.floor(bottom), math.ceil(top) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    axis.set_yscale("log")
    axis.set_ylim(10**bottom, 10**top)
    axis.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if bottom <= math.log10(tick) <= top]))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: short(tick)))
    axis.yaxis.set_minor_locator(NullLocator())


def counted(count: int, what: str) -> str:
    """``1 window``, ``2 windows``."""
    return f"{count} {what}" + ("" if count == 1 else "s")


def short(number: float) -> str:
    """A tick label: 0.5, 20, 1,000; powers of ten from a million up."""
    return _power(f"{number:.1e}") if number >= 999_500 else f"{number:,.12g}"


def printed(number: float) -> str:
    """Three significant digits, for a value printed on its mark: 25.0, 118, 1,121, 1.2×10⁶."""
    if not math.isfinite(number):
        return "NaN" if math.isnan(number) else "∞"
    if number >= 999_500:
        return _power(f"{number:.1e}")
    return f"{number:,.0f}" if number >= 99.95 else f"{number:#.3g}"


def _power(scientific: str) -> str:
    mantissa, exponent = scientific.split("e")
    times = "" if mantissa == "1.0" else f"{mantissa.removesuffix('.0')}×"
    return f"{times}10" + str(int(exponent)).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem`` as PDF, SVG and PNG (200 dpi); the same figure gives the same bytes."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in _METADATA]
    with applied():
        for path, metadata in zip(paths, _METADATA.values(), strict=True):
            figure.savefig(path, metadata=metadata)
    return paths
