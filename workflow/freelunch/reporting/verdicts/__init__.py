"""Verdicts: for every claim of the papers what the rows of a suite say of it, by an explicit rule."""

from __future__ import annotations

from freelunch.reporting.verdicts.criterion import Criterion
from freelunch.reporting.verdicts.drift import Drift
from freelunch.reporting.verdicts.memory import Memory
from freelunch.reporting.verdicts.parametrization import Parametrization
from freelunch.reporting.verdicts.retraining import Retraining
from freelunch.reporting.verdicts.scale import Scale
from freelunch.reporting.verdicts.simple_criterion import SimpleCriterion
from freelunch.reporting.verdicts.verdict import Case, Claim, Evidence, Outcome, Verdict
from freelunch.reporting.verdicts.vision import Allocation, Transition
from freelunch.reporting.verdicts.window import Window

__all__ = ["TESTED", "Case", "Evidence", "Outcome", "Verdict", "verdicts"]

TESTED: tuple[Claim, ...] = (
    Window(), Drift(), Memory(), Retraining(), Parametrization(), Criterion(), Scale(), SimpleCriterion(), Allocation(),
    Transition(),
)  # fmt: skip
"""All claims, in the order of the report."""


def verdicts(evidence: Evidence) -> list[Verdict]:
    """A verdict on every claim; none is left out because the rows cannot test it."""
    return [claim.judge(evidence) for claim in TESTED]
