"""Drift over depth: how far the output of every block is from the dense model's, alone and after all before it."""

from __future__ import annotations

from itertools import cycle

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame

from .. import charts, claims, findings, labels, style
from ..comparisons import varying
from ..drifts import ACCUMULATED, LOCAL, PANEL, SERIES, drifts, name
from ..estimates import of, ordered

_VIEW = "figure drift"
Panel = tuple[str, bool, DataFrame]
_LINES: tuple[tuple[str, charts.Line, str], ...] = (
    (LOCAL, charts.DASHES, "Block alone"),
    (ACCUMULATED, "-", "With all blocks before"),
)


@style.applied()
def draw(rows: DataFrame) -> Figure:
    """One colour per way to recover: local dashed, accumulated solid; panels are data sets, criteria and patterns.

    Raises:
        FreelunchError: as ``drifts.drifts``.
    """
    frame = drifts(rows, _VIEW)
    lines = ordered(frame, SERIES)
    looks = _looks([str(variant) for variant, *_ in lines])
    panels = _panels(frame)
    count = -(-len(panels) // 2)
    figure, grid = style.grid(count, -(-len(panels) // count), 2.2, sharex=True)
    axes = [axis for row in grid for axis in row]
    for spare in axes[len(panels) :]:
        spare.set_axis_off()
    for axis, (title, _, panel) in zip(axes, panels, strict=False):
        lost = 0
        for line, look in zip(lines, looks, strict=True):
            for metric, dashes, _ in _LINES:
                one = of(panel, [*SERIES, "metric"], [*line, metric]).sort_values("block")
                values = one["value"].to_numpy(float)
                shown = np.isfinite(values) & (values > 0)
                lost += int((~shown).sum())
                axis.plot(one["block"].to_numpy(float)[shown], values[shown], color=look.colour, marker=look.marker,
                          markersize=2.8, linewidth=0.9, linestyle=dashes)  # fmt: skip
        finite = panel["value"][np.isfinite(panel["value"]) & (panel["value"] > 0)]
        style.log_scale(axis, float(finite.min()) if len(finite) else 1, float(finite.max()) if len(finite) else 10)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_title(title)
        if lost:
            said = f"{style.counted(lost, 'value')} zero or not finite"
            axis.text(0.98, 0.04, said, transform=axis.transAxes, ha="right", fontsize=6.5)
    for row in grid:
        row[0].set_ylabel("Drift of the block's output\n(squared, relative)")
    style.label_columns(grid, "Depth (block)")
    keys = [charts.key(name(line), look) for line, look in zip(lines, looks, strict=True)]
    keys += [Line2D([], [], color=style.GREY, linestyle=dashes, label=text) for _, dashes, text in _LINES]
    columns = min(len(keys), 2 if figure.get_figwidth() == style.SINGLE else 4)
    figure.set_figheight(figure.get_figheight() + 0.16 * (-(-len(keys) // columns) - 1))
    figure.legend(handles=keys, loc="outside upper center", ncols=columns)
    charts.note(figure, _statement(panels))
    return figure


def caption(rows: DataFrame) -> str:
    """The paper's claim; of every way to recover the drift at the last block, and the mean of the blocks alone."""
    return _statement(_panels(drifts(rows, _VIEW)))


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
