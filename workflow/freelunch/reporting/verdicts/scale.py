"""The gaps between criteria shrink as models grow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

from .. import labels, style
from ..comparisons import Group, along, measured
from .differences import ERRORS, apart, over, spreads
from .places import named
from .verdict import FAILS, HOLDS, PARTLY, Case, Claim, Evidence


class Scale(Claim):
    """The spread between criteria after reconstruction, model by model."""

    name: ClassVar[str] = "scale"
    needs: ClassVar[str] = "two models of different size, with the same two criteria reconstructed in the same way"
    rule: ClassVar[str] = (
        f"The spread of log-perplexity between criteria after reconstruction. Holds: it falls from each model to the "
        f"next larger one, and from the smallest to the largest by more than {ERRORS:g} standard errors where there "
        f"are several seeds. Partly: it is smaller in the largest model than in the smallest. Does not hold: it is not."
    )

    def cases(self, evidence: Evidence) -> list[Case]:
        groups = along(measured(evidence.rows, self.view), "criterion")
        by_setting: dict[tuple[str, ...], list[Group]] = {}
        for group in groups:
            if group.setting["recovery"] == "reconstruct" and group.setting["model"] in evidence.parameters:
                rest = tuple(str(value) for axis, value in group.setting.items() if axis != "model")
                by_setting.setdefault(rest, []).append(group)
        families = list(by_setting.values())
        settings = [{axis: v for axis, v in family[0].setting.items() if axis != "model"} for family in families]
        names = named(settings, aside="criterion")
        found = [_case(name, family, evidence.parameters) for name, family in zip(names, families, strict=True)]
        return [case for case in found if case is not None]


def _case(where: str, family: list[Group], parameters: Mapping[str, int]) -> Case | None:
    family = sorted(family, key=lambda group: parameters[group.setting["model"]])
    sizes = [parameters[group.setting["model"]] for group in family]
    common = set.intersection(*(set(group.values) for group in family))
    if len(set(sizes)) < 2 or len(common) < 2:
        return None
    gaps = [over(list(spreads(group.at(name) for name in sorted(common)).values())) for group in family]
    falls = all(larger.value < smaller.value for smaller, larger in pairwise(gaps))
    shrinks = apart(gaps[0], gaps[-1])
    outcome = HOLDS if falls and shrinks.positive else PARTLY if shrinks.value > 0 else FAILS
    told = ", ".join(
        f"{group.setting['model']} ({labels.compact(size)} parameters) {style.printed(math.exp(gap.value))}"
        for group, size, gap in zip(family, sizes, gaps, strict=True)
    )
    return Case(where, outcome, f"highest over lowest perplexity: {told}", shrinks.seeds)
