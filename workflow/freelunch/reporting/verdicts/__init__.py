"""Verdicts: for every claim of the papers what the rows of a suite say of it, by an explicit rule."""

from __future__ import annotations

from .criterion import Criterion
from .drift import Drift
from .memory import Memory
from .parametrization import Parametrization
from .retraining import Retraining
from .scale import Scale
from .simple_criterion import SimpleCriterion
from .verdict import Case, Claim, Evidence, Outcome, Verdict
from .vision import Allocation, Transition
from .window import Window

__all__ = ["TESTED", "Case", "Evidence", "Outcome", "Verdict", "verdicts"]

TESTED: tuple[Claim, ...] = (
    Window(), Drift(), Memory(), Retraining(), Parametrization(), Criterion(), Scale(), SimpleCriterion(), Allocation(),
    Transition(),
)  # fmt: skip
"""All claims, in the order of the report."""


def verdicts(evidence: Evidence) -> list[Verdict]:
    """A verdict on every claim; none is left out because the rows cannot test it."""
    return [claim.judge(evidence) for claim in TESTED]
