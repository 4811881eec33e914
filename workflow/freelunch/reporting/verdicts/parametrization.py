"""Parameter-efficient fine-tuning suffices."""

from __future__ import annotations

from typing import ClassVar

from pandas import DataFrame

from freelunch.reporting import findings, labels
from freelunch.reporting.comparisons import Group
from freelunch.reporting.estimates import summary
from freelunch.reporting.studies import parametrizations, parts
from freelunch.reporting.verdicts.differences import between, lowest
from freelunch.reporting.verdicts.places import named
from freelunch.reporting.verdicts.verdict import FAILS, HOLDS, NEARLY, PARTLY, Case, Claim, Evidence

HALF = 0.5
"""Share of the full gain from which few parameters do most of the work."""


class Parametrization(Claim):
    """The best parametrization that does not train the matrices themselves against the best that does."""

    name: ClassVar[str] = "parametrization"
    needs: ClassVar[str] = (
        "a parametrization that trains the matrices themselves and one that does not, otherwise equal, and the pruned "
        "model not recovered"
    )
    rule: ClassVar[str] = (
        f"Gains are differences of log-perplexity to the pruned model not recovered. The best parametrization that "
        f"does not train the matrices themselves (low-rank parts, biases, norms) reaches at least {1 - NEARLY:.0%} of "
        f"the gain of the best that does: holds; at least {HALF:.0%}: partly; less: does not hold. The best are the "
        f"best of those measured, on the data they are measured on."
    )

    def cases(self, evidence: Evidence) -> list[Case]:
        groups = parametrizations(evidence.rows, self.view)
        names = named([group.setting for group in groups])
        found = [_case(name, group) for name, group in zip(names, groups, strict=True)]
        return [case for case in found if case is not None]


def _case(where: str, group: Group) -> Case | None:
    every = {value: group.at(value) for value in group.values}
    full = {value: runs for value, runs in every.items() if parts(value)[0] == "full"}
    efficient = {value: runs for value, runs in every.items() if value not in full}
    if not full or not efficient:
        return None
    best, other = lowest(full), lowest(efficient)
    whole, part = between(group.alone, full[best]), between(group.alone, efficient[other])
    # where training everything gains nothing there is nothing to share
    if whole is None or part is None or not whole.value > 0:
        return None
    share = part.value / whole.value
    outcome = HOLDS if share >= 1 - NEARLY else PARTLY if share >= HALF else FAILS
    told = [f"{labels.value('parametrization', name)} {_said(runs)}" for name, runs in
            ((other, efficient[other]), (best, full[best]))]  # fmt: skip
    alone = findings.shown(summary(group.alone))
    numbers = f"{told[0]} reaches {share:.0%} of the gain of {told[1]}; not recovered {alone}"
    return Case(where, outcome, numbers, part.seeds)


def _said(runs: DataFrame) -> str:
    trained = summary(runs, "trainable_parameters")
    count = f" ({labels.compact(trained.value)} trained parameters)" if trained else ""
    return findings.shown(summary(runs)) + count
