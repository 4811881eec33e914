"""Wanda with reconstruction outperforms criteria that are more complex."""

from __future__ import annotations

from typing import Any, ClassVar

import pandas as pd
from pandas import DataFrame

from freelunch.reporting import findings, labels
from freelunch.reporting.comparisons import AXES, PRUNED, WHERE, measured, recovered
from freelunch.reporting.estimates import of, ordered, summary
from freelunch.reporting.studies import of_matrices
from freelunch.reporting.verdicts.differences import ERRORS, between
from freelunch.reporting.verdicts.places import named
from freelunch.reporting.verdicts.verdict import FAILS, HOLDS, PARTLY, Case, Claim, Evidence

SIMPLE = "wanda"
COMPLEX = ("sparsegpt", "ria")
"""Criteria that take more than a weight and the norm of its input: second moments, or sums over rows and columns."""


class SimpleCriterion(Claim):
    """Wanda, reconstructed in windows of half a block or more, against others with and without reconstruction."""

    name: ClassVar[str] = "simple_criterion"
    needs: ClassVar[str] = (
        f"{SIMPLE} reconstructed in windows of half a block or more, and {' or '.join(COMPLEX)}, pruned alike"
    )
    rule: ClassVar[str] = (
        f"Wanda, reconstructed in windows of half a block or more, has a lower perplexity than {' and '.join(COMPLEX)} "
        f"(by more than {ERRORS:g} standard errors where there are several seeds). Holds: lower than all that were "
        f"measured, not recovered or reconstructed alike; partly: lower than all that are not recovered; does not "
        f"hold: neither."
    )

    def cases(self, evidence: Evidence) -> list[Case]:
        runs = measured(evidence.rows, self.view)
        local = recovered(runs, "reconstruct")
        local = local[(local["criterion"].map(_base) == SIMPLE) & ~local["window"].map(of_matrices).astype(bool)]
        others = runs[runs["criterion"].map(_base).isin(COMPLEX)]
        keys = ordered(local, AXES)
        settings: list[dict[str, Any]] = [dict(zip(AXES, key, strict=True)) for key in keys]
        names = named(settings)
        found = [_case(name, of(local, AXES, key), others, setting)
                 for name, key, setting in zip(names, keys, settings, strict=True)]  # fmt: skip
        return [case for case in found if case is not None]


def _base(criterion: str) -> str:
    return criterion.split("(")[0]


def _case(where: str, runs: DataFrame, others: DataFrame, setting: dict[str, Any]) -> Case | None:
    pruned = [axis for axis in (*WHERE, *PRUNED) if axis != "criterion"]
    alike = [axis for axis in AXES if axis != "criterion"]
    alone = of(others[others["recovery"] == labels.NOT_RECOVERED], pruned, [setting[axis] for axis in pruned])
    rebuilt = of(others, alike, [setting[axis] for axis in alike])
    told, better = [], {}
    for opponents, how in ((alone, "not recovered"), (rebuilt, "reconstructed")):
        for (criterion,) in ordered(opponents, ["criterion"]):
            opponent = of(opponents, ["criterion"], [criterion])
            ahead = between(opponent, runs)
            if ahead is not None:
                told.append(f"{labels.value('criterion', criterion)} {how} {findings.shown(summary(opponent))}")
                better[criterion, how] = ahead
    if not better:
        return None
    unrecovered = [ahead.positive for (_, how), ahead in better.items() if how == "not recovered"]
    outcome = FAILS
    if all(ahead.positive for ahead in better.values()):
        outcome = HOLDS
    elif unrecovered and all(unrecovered):
        outcome = PARTLY
    window = "" if pd.isna(setting["window"]) else f" ({labels.value('window', setting['window'])})"
    numbers = f"{labels.value('criterion', setting['criterion'])} reconstructed{window} "
    numbers += f"{findings.shown(summary(runs))}; {', '.join(told)}"
    return Case(where, outcome, numbers, min(ahead.seeds for ahead in better.values()))
