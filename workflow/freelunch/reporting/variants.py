"""A number by criterion and pattern: one mark per way to recover, with its value, and a line for the dense model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import blended_transform_factory

from freelunch.reporting import labels, style
from freelunch.reporting.estimates import Cells, Estimate, missing
from freelunch.reporting.panels import wrapped

_DASHES = (0, (4, 2))
_FITTING = 16
"""Values that can be printed side by side over the width of a page."""
Setting = dict[str, Any]


def draw(
    found: Cells,
    scale: Callable[[Axes, list[float], Setting], None],
    label: Callable[[Setting], str],
    more: tuple[Line2D, ...] = (),
) -> Figure:
    """Panels for every axis that differs, but for criterion and pattern, which stand side by side.

    Args:
        found: the numbers.
        scale: sets the y axis of a panel to its finite values.
        label: of the y axis of a panel.
        more: keys of what ``scale`` draws.
    """
    variants = [variant for variant in found.variants if variant != "dense"]
    places = [i for i, name in enumerate(found.levels) if name not in ("criterion", "pattern")]
    panels: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for setting in found.settings:
        # a missing value differs from itself
        panels.setdefault(missing(setting[i] for i in places), []).append(setting)
    widest = max(1, int(_FITTING / (len(variants) + 0.6)))
    lines = [(panel, line) for panel, settings in panels.items() for line in wrapped(settings, widest)]
    most = max(len(line) for _, line in lines)
    width = style.SINGLE if most * (len(variants) + 0.6) < 8 else style.DOUBLE
    figure, axes = style.grid(len(lines), 1, height=2.3 if len(lines) == 1 else 1.9, width=width)
    names = [found.levels[i] for i in places]
    # the data set and the length are in the label of the axis
    told = [i for i, name in enumerate(names) if name not in ("dataset", "length") and len({p[i] for p in panels}) > 1]
    for (axis,), (panel, line) in zip(axes, lines, strict=True):
        where = dict(zip(names, panel, strict=True))
        values = [cell.value for (setting, _), cell in found.cells.items() if setting in panels[panel]]
        scale(axis, [value for value in values if math.isfinite(value)], where)
        _panel(axis, found, line, variants)
        axis.set_ylabel(label(where))
        said = [i for i in told if not pd.isna(panel[i])]
        axis.set_title(", ".join(labels.described(names[i], panel[i]) for i in said), loc="left")
    axes[-1][0].set_xlabel("Criterion and pattern")
    columns = 2 if width == style.SINGLE else len(found.variants) + len(more)
    figure.legend(handles=[*_keys(found), *more], loc="outside upper center", ncols=columns)
    return figure


def _panel(axis: Axes, found: Cells, settings: list[tuple[Any, ...]], variants: list[str]) -> None:
    looks = style.looks(variants)
    spread = (len(variants) - 1) / (len(variants) + 0.6)
    offsets = np.linspace(-spread / 2, spread / 2, len(variants)) if len(variants) > 1 else np.zeros(1)
    for group, setting in enumerate(settings):
        for variant, offset in zip(variants, offsets, strict=True):
            if (setting, variant) in found.cells:
                _mark(axis, group + float(offset), found.cells[setting, variant], looks[variant])
    dense = next((found.cells[s, "dense"] for s in settings if (s, "dense") in found.cells), None)
    if dense and math.isfinite(dense.value):
        axis.axhline(dense.value, color=style.BLACK, linestyle=_DASHES, linewidth=0.8, zorder=1)
        beside = blended_transform_factory(axis.transAxes, axis.transData)
        axis.text(1.01, dense.value, style.printed(dense.value), transform=beside, va="center", fontsize=7)
    places = [(found.levels.index(name), name) for name in ("criterion", "pattern")]
    ticks = ["\n".join(labels.value(name, setting[i]) for i, name in places) for setting in settings]
    axis.set_xticks(range(len(settings)), ticks)
    axis.tick_params(axis="x", length=0)
    axis.set_xlim(-0.5, len(settings) - 0.5)
    for border in range(1, len(settings)):
        axis.axvline(border - 0.5, color="#E3E3E3", linewidth=0.5, zorder=0)


def _mark(axis: Axes, x: float, cell: Estimate, look: style.Look) -> None:
    """A mark with its value above; what is not finite stands at the upper end of the scale, hollow."""
    if math.isfinite(cell.value):
        error = cell.stderr if math.isfinite(cell.stderr) else None
        axis.errorbar(x, cell.value, yerr=error, fmt=look.marker, color=look.colour, elinewidth=0.8, zorder=3)
        above, height = axis.transData, cell.value + (error or 0)
    else:
        above, height = blended_transform_factory(axis.transData, axis.transAxes), 0.9
        axis.plot(x, height, look.marker, color=look.colour, fillstyle="none", transform=above, zorder=3)
    text = style.printed(cell.value)
    place: dict[str, Any] = {"xycoords": above, "xytext": (0, 4), "textcoords": "offset points"}
    axis.annotate(text, (x, height), **place, ha="center", va="bottom", fontsize=6.5)


def _keys(found: Cells) -> list[Line2D]:
    looks = style.looks([variant for variant in found.variants if variant != "dense"])
    keys = []
    for variant in found.variants:
        name = labels.value("variant", variant)
        if variant == "dense":
            keys.append(Line2D([], [], color=style.BLACK, linestyle=_DASHES, linewidth=0.8, label=name))
        else:
            look = looks[variant]
            keys.append(Line2D([], [], color=look.colour, marker=look.marker, linestyle="none", label=name))
    return keys
