"""The free-lunch regime: which window is reconstructed hardly matters, as long as it holds a submodule."""

from __future__ import annotations

import math
from typing import ClassVar

from freelunch.reporting import findings, labels
from freelunch.reporting.estimates import summary
from freelunch.reporting.studies import EXACT, of_matrices
from freelunch.reporting.verdicts.differences import ERRORS, between, highest, lowest
from freelunch.reporting.verdicts.places import Windows, by_window
from freelunch.reporting.verdicts.verdict import FAILS, HOLDS, NEARLY, PARTLY, Case, Claim, Evidence

_SINGLE = ("matrix", EXACT)
"""``key_up`` is neither: it holds two matrices and trains them across the attention between them."""


class Window(Claim):
    """Windows from half a block up against each other and against single matrices."""

    name: ClassVar[str] = "window"
    needs: ClassVar[str] = (
        "at least two windows of half a block or more that are otherwise equal, with a gain over the pruned model not "
        "recovered"
    )
    rule: ClassVar[str] = (
        f"(a) Among windows of half a block or more, the log-perplexity of the worst is above that of the best by at "
        f"most {NEARLY:.0%} of what the best gains over not recovering. (b) Windows of single matrices are worse than "
        f"every one of those, by more than {ERRORS:g} standard errors where there are several seeds. Holds: both; "
        f"partly: one; does not hold: none. Where no window gains anything there is nothing to compare."
    )

    def cases(self, evidence: Evidence) -> list[Case]:
        found = [_case(series) for series in by_window(evidence.rows, self.view)]
        return [case for case in found if case is not None]


def _case(series: Windows) -> Case | None:
    large = {window: runs for window, runs in series.runs.items() if not of_matrices(window)}
    single = {window: runs for window, runs in series.runs.items() if window in _SINGLE}
    if len(large) < 2:
        return None
    best, worst = lowest(large), highest(large)
    gain, spread = between(series.alone, large[best]), between(large[worst], large[best])
    if gain is None or spread is None or not gain.value > 0:
        return None
    flat = math.isfinite(spread.value) and spread.value <= NEARLY * gain.value
    against = [between(runs, other) for runs in single.values() for other in large.values()]
    worse = bool(against) and all(found is not None and found.positive for found in against)
    told = findings.listed((labels.value("window", window), summary(runs)) for window, runs in series.runs.items())
    said = "not measured" if not single else "worse than all of these" if worse else "not worse than all of these"
    numbers = (
        f"{told}, not recovered {findings.shown(summary(series.alone))}; from half a block up worst and best are "
        f"{spread.value / gain.value:.0%} of the gain apart; single matrices are {said}"
    )
    outcome = HOLDS if flat and worse else PARTLY if flat or worse else FAILS
    return Case(series.where, outcome, numbers, spread.seeds)
