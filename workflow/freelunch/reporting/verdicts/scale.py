"""The gaps between criteria shrink as models grow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

from freelunch.reporting import labels, style
from freelunch.reporting.comparisons import along, measured
from freelunch.reporting.scales import Series, better, series
from freelunch.reporting.studies import chosen
from freelunch.reporting.verdicts.differences import ERRORS, apart, over, spreads
from freelunch.reporting.verdicts.places import named
from freelunch.reporting.verdicts.verdict import FAILS, HOLDS, PARTLY, Case, Claim, Evidence


class Scale(Claim):
    """The spread between criteria after reconstruction, from model to model of a family."""

    name: ClassVar[str] = "scale"
    needs: ClassVar[str] = (
        "two models of one family and of different size, with the same two criteria other than random reconstructed "
        "in the same way, and no dense perplexity that rises from a model to a larger one: such models differ in how "
        "well they are trained more than in size"
    )
    rule: ClassVar[str] = (
        f"The spread of log-perplexity between criteria after reconstruction, in models of one family (those without "
        f"one together), on the criteria that all of them have; those with more are compared once more on theirs. "
        f"Random pruning is left out: it is a floor, and no criterion that one would choose. Holds: it falls from each "
        f"model to the next larger one, and from the smallest to the largest by more than {ERRORS:g} standard errors "
        f"where there are several seeds. Partly: it is smaller in the largest model than in the smallest. Does not "
        f"hold: it is not."
    )

    def cases(self, evidence: Evidence) -> list[Case]:
        groups = along(chosen(measured(evidence.rows, self.view)), "criterion")
        groups = [group for group in groups if group.setting["recovery"] == "reconstruct"]
        known = [group for group in groups if group.setting["model"] in evidence.parameters]
        every = series(known, lambda group, name: name in group.values)
        names = named([one.setting for one in every], aside="criterion")
        found = [_case(name, one, evidence.parameters) for name, one in zip(names, every, strict=True)]
        return [case for case in found if case is not None]


def _case(where: str, one: Series, parameters: Mapping[str, int]) -> Case | None:
    groups = sorted(one.groups, key=lambda group: parameters[group.setting["model"]])
    sizes = [parameters[group.setting["model"]] for group in groups]
    if len(set(sizes)) < 2 or not better(groups):
        return None
    gaps = [over(list(spreads(group.at(name) for name in one.criteria).values())) for group in groups]
    falls = all(larger.value < smaller.value for smaller, larger in pairwise(gaps))
    shrinks = apart(gaps[0], gaps[-1])
    outcome = HOLDS if falls and shrinks.positive else PARTLY if shrinks.value > 0 else FAILS
    told = ", ".join(
        f"{group.setting['model']} ({labels.compact(size)} parameters) {style.printed(math.exp(gap.value))}"
        for group, size, gap in zip(groups, sizes, gaps, strict=True)
    )
    return Case(where, outcome, f"highest over lowest perplexity: {told}", shrinks.seeds)
