"""Drift at the last block: of the block alone, and with all before it, on calibrated and on other data."""

from __future__ import annotations

import math
from typing import Any

from pandas import DataFrame

from freelunch.reporting.comparisons import varying
from freelunch.reporting.drifts import ACCUMULATED, LOCAL, PANEL, SERIES, drifts
from freelunch.reporting.estimates import Estimate, of, ordered, suite
from freelunch.reporting.table import Column, Contest, Line, Table

_COLUMNS = (
    Column("drift_local", "Block alone"),
    Column("drift_accumulated", "With all blocks before"),
    Column("accumulation", "Accumulated / alone"),
    Column("drift_local_mean", "Mean over blocks, alone"),
)
_ALWAYS = ("model", "dataset", "criterion", "pattern")


def build(rows: DataFrame) -> Table:
    """One line per way to recover and data set; ``domain`` says whether the set is the one that was calibrated with.

    Raises:
        FreelunchError: as ``drifts.drifts``.
    """
    frame = drifts(rows, "table drift")
    panels = ordered(frame, PANEL)
    differing = varying(dict(zip(PANEL, key, strict=True)) for key in panels)
    shown = [axis for axis in PANEL if axis in _ALWAYS or axis in differing]
    series = [axis for axis in SERIES if axis == "variant" or frame[axis].notna().any()]
    lines: list[Line] = []
    contests = []
    for key in panels:
        panel = of(frame, PANEL, key)
        setting = dict(zip(PANEL, key, strict=True))
        domain = "in" if setting["dataset"] == setting["calibration"] else "out"
        first = len(lines)
        for line in ordered(panel, series):
            told: tuple[Any, ...] = (*(setting[axis] for axis in shown), domain, *line)
            lines.append((told, _cells(of(panel, series, line))))
        contests.append(Contest(tuple((place, 1) for place in range(first, len(lines)))))
    place = shown.index("dataset") + 1
    levels = (*shown[:place], "domain", *shown[place:], *series)
    after = len(shown)
    lines = [((*key[:place], key[after], *key[place:after], *key[after + 1 :]), cells) for key, cells in lines]
    title = (
        "Drift of the output of the last block: squared distance from the dense model's over its squared norm, median "
        "over tokens; lower is better."
    )
    return Table("drift", suite(rows), title, levels, _COLUMNS, lines, contests=tuple(contests),
                 bold="the lowest drift with all blocks before, for each data set and pruned model")  # fmt: skip


def _cells(line: DataFrame) -> tuple[Estimate | None, ...]:
    blocks = {metric: of(line, ["metric"], [metric]).sort_values("block") for metric in (LOCAL, ACCUMULATED)}
    local, accumulated = (_last(found) for found in blocks.values())
    times = None
    if local is not None and accumulated is not None:
        times = Estimate(accumulated.value / local.value if local.value else math.inf, math.nan, accumulated.runs)
    mean = Estimate(float(blocks[LOCAL]["value"].mean(skipna=False))) if len(blocks[LOCAL]) else None
    return local, accumulated, times, mean


def _last(blocks: DataFrame) -> Estimate | None:
    if blocks.empty:
        return None
    last = blocks.iloc[-1]
    return Estimate(float(last["value"]), float(last["stderr"]), int(last["runs"]))
