"""Drift over depth: how far the output of every block is from the dense model's, alone and after all before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame

from freelunch.reporting import charts, claims, findings, labels, style
from freelunch.reporting.comparisons import varying
from freelunch.reporting.drifts import ACCUMULATED, LOCAL, PANEL, SERIES, drifts, name
from freelunch.reporting.estimates import of, ordered

_VIEW = "figure drift"
Panel = tuple[str, bool, DataFrame]
_COLUMNS = ((LOCAL, "block alone"), (ACCUMULATED, "with all blocks before"))
_STROKES: tuple[charts.Line, ...] = ("-", charts.DASHES, charts.DOTS, charts.MIXED)
_MARKED = 4
"""Every so many blocks of a line have a mark, and those of other lines are others, so that marks do not hide lines."""


@style.applied()
def draw(rows: DataFrame) -> Figure:
    """One line per way to recover; rows of panels are data sets, criteria and patterns, columns local and accumulated.

    Repairs, which hardly move anything, are left to the table.

    Raises:
        FreelunchError: as ``drifts.drifts``.
    """
    frame = drifts(rows, _VIEW)
    lines = [line for line in ordered(frame, SERIES) if line[0] != "repair"]
    looks = _looks([str(variant) for variant, *_ in lines])
    strokes = _strokes(looks)
    panels = _panels(frame)
    figure, grid = style.grid(len(panels), len(_COLUMNS), 2.2, sharex=True)
    for row, (title, _, panel) in zip(grid, panels, strict=True):
        for axis, (metric, what) in zip(row, _COLUMNS, strict=True):
            _draw(axis, of(panel, ["metric"], [metric]), lines, looks, strokes)
            axis.set_title(f"{title}: {what}")
        row[0].set_ylabel("Drift of the block's output\n(squared, relative)")
    style.label_columns(grid, "Depth (block)")
    keys = [charts.key(name(line), look, stroke) for line, look, stroke in zip(lines, looks, strokes, strict=True)]
    return charts.legend(figure, keys, _statement(panels))


def _draw(
    axis: Axes,
    panel: DataFrame,
    lines: Sequence[tuple[Any, ...]],
    looks: Sequence[style.Look],
    strokes: Sequence[charts.Line],
) -> None:
    lost = 0
    for at, (line, look, stroke) in enumerate(zip(lines, looks, strokes, strict=True)):
        one = of(panel, SERIES, line).sort_values("block")
        values = one["value"].to_numpy(float)
        shown = np.isfinite(values) & (values > 0)
        lost += int((~shown).sum())
        axis.plot(one["block"].to_numpy(float)[shown], values[shown], color=look.colour, marker=look.marker,
                  linestyle=stroke, markersize=3.2, markevery=(at % _MARKED, _MARKED), linewidth=0.9)  # fmt: skip
    finite = panel["value"][np.isfinite(panel["value"]) & (panel["value"] > 0)]
    style.log_scale(axis, float(finite.min()) if len(finite) else 1, float(finite.max()) if len(finite) else 10)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if lost:
        said = f"{style.counted(lost, 'value')} zero or not finite"
        axis.text(0.98, 0.04, said, transform=axis.transAxes, ha="right", fontsize=6.5)


def caption(rows: DataFrame) -> str:
    """The paper's claim; of every way to recover the drift at the last block, and the mean of the blocks alone."""
    return _statement(_panels(drifts(rows, _VIEW)))


def selected(rows: DataFrame) -> DataFrame:
    """All drifts."""
    return rows[rows["metric"].isin([LOCAL, ACCUMULATED])]


def _statement(panels: list[Panel]) -> str:
    sentences = []
    for title, home, panel in panels:
        if not home and any(other for _, other, _ in panels):
            continue
        told = []
        for line in ordered(panel, SERIES):
            one = of(panel, SERIES, line)
            local, all_of = (
                one[one["metric"] == metric].sort_values("block")["value"] for metric in (LOCAL, ACCUMULATED)
            )
            parts = [f"{style.printed(all_of.iloc[-1])} at the last block"] if len(all_of) else []
            parts += [f"mean of blocks alone {style.printed(local.mean(skipna=False))}"] if len(local) else []
            told.append(f"{name(line)} {', '.join(parts)}")
        sentences.append((title, "; ".join(told)))
    return claims.statement("drift", _fixed(panels) + findings.joined(sentences))


def _fixed(panels: list[Panel]) -> str:
    """What reconstructions have in common where a line says nothing else."""
    told = dict.fromkeys(text for _, _, panel in panels for text in panel["fixed"] if text)
    return f"Reconstruction where nothing else is said: {' or '.join(told)}. " if told else ""


def _panels(frame: DataFrame) -> list[Panel]:
    """Title, whether it is of the data set that was calibrated with, and rows of every panel."""
    keys = ordered(frame, PANEL)
    settings = [dict(zip(PANEL, key, strict=True)) for key in keys]
    differing = varying(settings)
    found = []
    for key, setting in zip(keys, settings, strict=True):
        panel = of(frame, PANEL, key)
        home = setting["dataset"] == setting["calibration"]
        title = charts.title(setting, [axis for axis in differing if axis != "dataset"])
        data = labels.value("dataset", setting["dataset"]) + (" (calibration data)" if home else "")
        found.append((f"{title}\n{data}", home, panel))
    return sorted(found, key=lambda panel: not panel[1])


def _looks(variants: list[str]) -> list[style.Look]:
    """Known variants as everywhere; the others, and known ones that come twice, in the order given."""
    used = [style.LOOKS[variant] for variant in dict.fromkeys(variants) if variant in style.LOOKS]
    colours = {look.colour for look in used}
    spare = sorted((look for look in style.SERIES if look not in used), key=lambda look: look.colour in colours)
    others = cycle(spare)
    seen: set[str] = set()
    found = []
    for variant in variants:
        known = variant in style.LOOKS and variant not in seen
        found.append(style.LOOKS[variant] if known else next(others))
        seen.add(variant)
    return found


def _strokes(looks: Sequence[style.Look]) -> list[charts.Line]:
    """Solid for the first line of a colour, another for each further one: between its marks a line has nothing else."""
    seen: Counter[str] = Counter()
    found = []
    for look in looks:
        found.append(_STROKES[seen[look.colour] % len(_STROKES)])
        seen[look.colour] += 1
    return found
