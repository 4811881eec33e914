"""Reconstruction lowers the importance of the criterion."""

from __future__ import annotations

import math
from typing import ClassVar

from pandas import DataFrame

from freelunch.reporting import findings, labels, style
from freelunch.reporting.comparisons import Group, along, measured
from freelunch.reporting.estimates import of, summary
from freelunch.reporting.studies import chosen
from freelunch.reporting.verdicts.differences import ERRORS, over, spreads
from freelunch.reporting.verdicts.places import named
from freelunch.reporting.verdicts.verdict import FAILS, HOLDS, PARTLY, Case, Claim, Evidence


class Criterion(Claim):
    """The spread between criteria before and after reconstruction."""

    name: ClassVar[str] = "criterion"
    needs: ClassVar[str] = (
        "two criteria other than random, each not recovered and reconstructed, that are otherwise equal"
    )
    rule: ClassVar[str] = (
        f"The spread of log-perplexity between criteria (highest minus lowest) is smaller after reconstruction than "
        f"before. Random pruning is left out: it is a floor, and no criterion that one would choose. Holds: by more "
        f"than {ERRORS:g} standard errors where there are several seeds; partly: by less; does not hold: it is no "
        f"smaller."
    )

    def cases(self, evidence: Evidence) -> list[Case]:
        groups = along(chosen(measured(evidence.rows, self.view)), "criterion")
        groups = [group for group in groups if group.setting["recovery"] == "reconstruct"]
        names = named([group.setting for group in groups], aside="criterion")
        found = [_case(name, group) for name, group in zip(names, groups, strict=True)]
        return [case for case in found if case is not None]


def _case(where: str, group: Group) -> Case | None:
    alone = {name: of(group.alone, ["criterion"], [name]) for name in group.values}
    after = {name: group.at(name) for name in group.values if len(alone[name])}
    before = {name: alone[name] for name in after}
    if len(after) < 2:
        return None
    first, last = spreads(before.values()), spreads(after.values())
    common = sorted(first.keys() & last.keys())
    if not common:
        return None
    shrinks = over([first[seed] - last[seed] for seed in common])
    outcome = HOLDS if shrinks.positive else PARTLY if shrinks.value > 0 else FAILS
    numbers = (
        f"highest over lowest perplexity {_factor(first, common)} before ({_listed(before)}), "
        f"{_factor(last, common)} after ({_listed(after)})"
    )
    return Case(where, outcome, numbers, shrinks.seeds)


def _factor(found: dict[int, float], seeds: list[int]) -> str:
    return style.printed(math.exp(sum(found[seed] for seed in seeds) / len(seeds)))


def _listed(settings: dict[str, DataFrame]) -> str:
    return findings.listed((labels.value("criterion", name), summary(runs)) for name, runs in settings.items())
