"""Attention and MLP apart: the best perplexity for the least memory."""

from __future__ import annotations

from typing import ClassVar

from freelunch.reporting import findings, labels
from freelunch.reporting.estimates import summary
from freelunch.reporting.verdicts.differences import ERRORS, between, lowest
from freelunch.reporting.verdicts.places import Windows, by_window
from freelunch.reporting.verdicts.verdict import FAILS, HOLDS, NEARLY, PARTLY, Case, Claim, Evidence

HALVES = "attention_mlp"
SAME = 0.05
"""Share by which peak memories may differ and count as equal: what a process takes varies by some percent."""


class Memory(Claim):
    """Whether another window takes less memory and is as good, or is better and takes no more."""

    name: ClassVar[str] = "memory"
    needs: ClassVar[str] = (
        "window attention_mlp beside another that is otherwise equal, with peak memory and a gain over the pruned "
        "model not recovered"
    )
    rule: ClassVar[str] = (
        f"(a) Attention and MLP apart is on the Pareto front of perplexity and peak memory: no window takes at least "
        f"{SAME:.0%} less memory at a perplexity that is no higher, and none has a lower perplexity (by more than "
        f"{ERRORS:g} standard errors where there are several seeds) at memory that is no higher. (b) Its "
        f"log-perplexity is above the best window's by at most {NEARLY:.0%} of what that gains over not recovering. "
        f"Holds: both; partly: one; does not hold: none. Where no window gains anything there is nothing to compare."
    )

    def cases(self, evidence: Evidence) -> list[Case]:
        found = [_case(series) for series in by_window(evidence.rows, self.view)]
        return [case for case in found if case is not None]


def _case(series: Windows) -> Case | None:
    found = {window: summary(runs, "peak_gib") for window, runs in series.runs.items()}
    memory = {window: peak.value for window, peak in found.items() if peak is not None}
    if HALVES not in memory or len(memory) < 2:
        return None
    runs = {window: series.runs[window] for window in memory}
    best, least = lowest(runs), min(memory, key=lambda window: memory[window])
    gain, behind = between(series.alone, runs[best]), between(runs[HALVES], runs[best])
    if gain is None or behind is None or not gain.value > 0:
        return None
    ahead = []
    for window in memory:
        worse = between(runs[HALVES], runs[window])
        smaller = memory[window] <= (1 - SAME) * memory[HALVES]
        if worse is not None and memory[window] <= memory[HALVES] and worse.value >= 0 and (smaller or worse.positive):
            ahead.append(labels.value("window", window))
    nearly = behind.value <= NEARLY * gain.value
    told = [
        f"{role}{labels.value('window', window)} {findings.shown(summary(runs[window]))} ({memory[window]:.2f} GiB)"
        for role, window in (("", HALVES), ("best ", best), ("least memory ", least))
    ]
    front = f"dominated by {', '.join(ahead)}" if ahead else "on the Pareto front"
    share = f"{behind.value / gain.value:.0%} of the gain behind the best"
    outcome = HOLDS if nearly and not ahead else PARTLY if nearly or not ahead else FAILS
    return Case(series.where, outcome, f"{', '.join(told)}; {front}, {share}", behind.seeds)
