"""What a verdict is: a claim of a paper, a rule by which rows decide it, and the numbers that did."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pandas import DataFrame

from freelunch.errors import FreelunchError
from freelunch.reporting import claims

Outcome = Literal["holds", "holds partly", "does not hold here", "not testable here"]
HOLDS: Outcome = "holds"
PARTLY: Outcome = "holds partly"
FAILS: Outcome = "does not hold here"
UNTESTED: Outcome = "not testable here"

NEARLY = 0.1
"""Share of what recovery gains, in log-perplexity over not recovering, that counts as little.

A choice that hardly matters should cost an order of magnitude less than not recovering at all.
"""
_TOLD = 3
"""Comparisons whose numbers stand in the reason itself; the report lists all."""


@dataclass(frozen=True)
class Evidence:
    """What verdicts are computed from.

    Attributes:
        rows: of one suite.
        parameters: number of parameters of its models, where known.
    """

    rows: DataFrame
    parameters: Mapping[str, int]


@dataclass(frozen=True)
class Case:
    """One comparison that tests a claim: where it was made, how it came out, the numbers, and over how many seeds."""

    where: str
    outcome: Outcome
    numbers: str
    seeds: int


@dataclass(frozen=True)
class Verdict:
    """A claim with its outcome over all cases, and why."""

    name: str
    source: str
    claim: str
    rule: str
    outcome: Outcome
    reason: str
    cases: tuple[Case, ...] = ()


class Claim(ABC):
    """A claim, and the rule that decides it. Subclasses say what a case is and how it comes out.

    Attributes:
        name: key of ``claims.CLAIMS``.
        rule: the rule in words, thresholds included.
        needs: what rows must have to test it.
    """

    name: ClassVar[str]
    rule: ClassVar[str]
    needs: ClassVar[str]
    source: ClassVar[str] = claims.SOURCE

    @property
    def view(self) -> str:
        """What messages about missing runs call it."""
        return f"claim {self.name}"

    @abstractmethod
    def cases(self, evidence: Evidence) -> list[Case]:
        """All comparisons that test the claim.

        Raises:
            FreelunchError: the rows lack something; the message says what.
        """

    def judge(self, evidence: Evidence) -> Verdict:
        """The claim holds (or does not) if it does in every case; else it holds partly."""
        try:
            found = self.cases(evidence)
            missing = "" if found else f"This needs {self.needs}; the rows have none."
        except FreelunchError as error:
            found, missing = [], f"{error}."
        about = (self.name, self.source, claims.CLAIMS[self.name], self.rule)
        if missing:
            return Verdict(*about, UNTESTED, missing[:1].upper() + missing[1:])
        return Verdict(*about, combined([case.outcome for case in found]), _reason(found), tuple(found))


def combined(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome that all cases share; where they differ a claim holds partly."""
    return outcomes[0] if len(set(outcomes)) == 1 else PARTLY


def _reason(cases: Sequence[Case]) -> str:
    """How the cases came out, the numbers of the first of them, and what is known of their scatter."""
    counts = Counter(case.outcome for case in cases)
    tally = ", ".join(f"{outcome} in {counts[outcome]}" for outcome in (HOLDS, PARTLY, FAILS) if counts[outcome])
    parts = [f"Of {len(cases)} comparisons: {tally}."] if len(cases) > 1 else []
    parts += [f"{case.where}: {case.numbers}." for case in cases[:_TOLD]]
    if len(cases) > _TOLD:
        parts.append(f"({len(cases) - _TOLD} more below.)")
    return " ".join([*parts, _seeds(cases)])


def _seeds(cases: Sequence[Case]) -> str:
    fewest, most = min(case.seeds for case in cases), max(case.seeds for case in cases)
    if most == 1:
        return "One seed: differences have no error and are taken as they are."
    if fewest == 1:
        return "Some comparisons have one seed: their differences have no error and are taken as they are."
    return f"Over {fewest} seeds." if fewest == most else f"Over {fewest} to {most} seeds."
