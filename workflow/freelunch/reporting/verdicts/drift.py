"""Small errors of single matrices accumulate over the depth."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

from pandas import DataFrame

from freelunch.reporting import labels, style
from freelunch.reporting.drifts import ACCUMULATED, LOCAL, PANEL, drifts
from freelunch.reporting.estimates import of, ordered
from freelunch.reporting.studies import EXACT
from freelunch.reporting.verdicts.differences import ERRORS, Difference, apart
from freelunch.reporting.verdicts.places import named
from freelunch.reporting.verdicts.verdict import FAILS, HOLDS, PARTLY, Case, Claim, Evidence

HALVES, SINGLE = "attention_mlp", ("matrix", EXACT)
GROWTH = 2.0
"""Accumulated over local drift from which errors accumulate: half of the drift at the end came from blocks before."""


class _Line(NamedTuple):
    """Drift at the last block with all before it, and the mean drift of the blocks alone."""

    accumulated: Difference
    local: float


class Drift(Claim):
    """Windows of single matrices against attention and MLP apart."""

    name: ClassVar[str] = "drift"
    needs: ClassVar[str] = "drift of reconstructions with window matrix (or matrix_exact) beside attention_mlp"
    rule: ClassVar[str] = (
        f"(a) At the last block, with all blocks before it, the drift of a network whose single matrices were "
        f"reconstructed is above that with attention and MLP apart, by more than {ERRORS:g} standard errors where "
        f"there are several seeds. (b) It is at least {GROWTH:g} times the mean drift of its blocks alone. Holds: "
        f"both; partly: one; does not hold: none."
    )

    def cases(self, evidence: Evidence) -> list[Case]:
        frame = drifts(evidence.rows, self.view)
        keys = ordered(frame, PANEL)
        settings: list[dict[str, Any]] = [dict(zip(PANEL, key, strict=True)) for key in keys]
        found = []
        for where, key in zip(named(settings), keys, strict=True):
            panel = of(frame, PANEL, key)
            panel = panel[panel["flow"].isna()]
            halves = _line(panel, HALVES)
            for window in SINGLE:
                single = _line(panel, window)
                if single is not None and halves is not None:
                    found.append(_case(where, window, single, halves))
        return found


def _line(panel: DataFrame, window: str) -> _Line | None:
    runs = panel[panel["variant"] == window]
    accumulated = runs[runs["metric"] == ACCUMULATED].sort_values("block")
    local = runs[runs["metric"] == LOCAL]["value"]
    if accumulated.empty or local.empty:
        return None
    last = accumulated.iloc[-1]
    # what is not a number has drifted without bounds
    value = math.inf if math.isnan(last["value"]) else float(last["value"])
    return _Line(Difference(value, float(last["stderr"]), int(last["runs"])), float(local.mean()))


def _case(where: str, window: str, single: _Line, halves: _Line) -> Case:
    more = apart(single.accumulated, halves.accumulated)
    growth = single.accumulated.value / single.local if single.local else math.inf
    said = [
        f"{labels.value('window', name)} {style.printed(line.accumulated.value)} at the last block "
        f"(blocks alone {style.printed(line.local)})"
        for name, line in ((window, single), (HALVES, halves))
    ]
    held = (more.positive, growth >= GROWTH)
    outcome = HOLDS if all(held) else PARTLY if any(held) else FAILS
    return Case(where, outcome, f"{', '.join(said)}; drift grows {growth:.3g} times", more.seeds)
