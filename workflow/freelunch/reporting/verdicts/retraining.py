"""Local reconstruction matches retraining on more than ten times the data."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, ClassVar, NamedTuple

from pandas import DataFrame

from freelunch.reporting import findings, labels
from freelunch.reporting.comparisons import Group
from freelunch.reporting.estimates import of, ordered, summary
from freelunch.reporting.retraining import races, series
from freelunch.reporting.verdicts.differences import ERRORS, Difference, between
from freelunch.reporting.verdicts.places import named
from freelunch.reporting.verdicts.verdict import FAILS, HOLDS, PARTLY, Case, Claim, Evidence

TIMES = 10.0
"""The paper's factor."""
EQUAL = 1.25
"""Token counts within this factor count as equal: early stopping and rounding to batches move them."""

Line = tuple[dict[str, Any], DataFrame]


class _Pair(NamedTuple):
    """Reconstruction and retraining at some tokens, and how much worse reconstruction is."""

    tokens: int
    retrained: int
    worse: Difference
    text: str

    @property
    def ratio(self) -> float:
        return self.retrained / self.tokens

    @property
    def matches(self) -> bool:
        return not self.worse.positive


class Retraining(Claim):
    """Reconstruction on T tokens against retraining, with the same parametrization, on 10 T."""

    name: ClassVar[str] = "retraining"
    needs: ClassVar[str] = (
        "retraining on as many tokens as reconstruction or more, of networks pruned alike, and a gain of one of them "
        "over the pruned model not recovered, if that was measured"
    )
    rule: ClassVar[str] = (
        f"Reconstruction on T tokens matches retraining if its perplexity is no higher (by no more than {ERRORS:g} "
        f"standard errors where there are several seeds). Holds: it matches retraining on at least {TIMES:g} T. "
        f"Partly: it matches at the largest ratio measured, if that is smaller, or at equal tokens (within a factor of "
        f"{EQUAL:g}). Does not hold: neither. Tokens are those of all epochs; those of searching rates are not counted."
        " Compute, which the claim names too, decides nothing here: figure retraining shows it."
    )

    def cases(self, evidence: Evidence) -> list[Case]:
        groups = races(evidence.rows, self.view)
        return [
            case
            for where, group in zip(named([group.setting for group in groups]), groups, strict=True)
            for case in _cases(where, group)
        ]


def _cases(where: str, group: Group) -> Iterator[Case]:
    lines = series(group)
    if not _gains(group, lines):
        return
    local, retrained = ([line for line in lines if line[0]["recovery"] == how] for how in ("reconstruct", "retrain"))
    every = list(product(local, retrained))
    alike = [(one, other) for one, other in every if one[0]["parametrization"] == other[0]["parametrization"]]
    for one, other in alike or every:
        pairs = list(_pairs(one, other))
        if pairs and max(pair.ratio for pair in pairs) * EQUAL >= 1:
            told = ("loss", "parametrization") if len(alike or every) > 1 else ("loss",)
            about = ", ".join(labels.value(axis, other[0][axis]) for axis in told)
            yield _case(f"{where}, against {about}", pairs)


def _gains(group: Group, lines: list[Line]) -> bool:
    """Whether something is better than not recovering, or that was not measured."""
    trained = [runs for about, runs in lines if about["recovery"] != "repair"]
    points = [of(runs, ["training_tokens"], key) for runs in trained for key in ordered(runs, ["training_tokens"])]
    found = [gain.value > 0 for gain in (between(group.alone, runs) for runs in points) if gain is not None]
    return any(found) or not found


def _pairs(local: Line, retrained: Line) -> Iterator[_Pair]:
    """All pairs of token counts that have seeds in common."""
    # what is solved in closed form trains on no number of tokens
    counts = (ordered(runs.dropna(subset=["training_tokens"]), ["training_tokens"]) for _, runs in (local, retrained))
    for (tokens,), (others,) in product(*counts):
        at = [
            of(runs, ["training_tokens"], [count])
            for (_, runs), count in zip((local, retrained), (tokens, others), strict=True)
        ]
        worse = between(*at)
        if worse is not None and tokens > 0:
            first, second = (findings.shown(summary(runs)) for runs in at)
            text = (
                f"reconstruction {first} on {labels.compact(tokens)}, retraining {second} on {labels.compact(others)}"
            )
            yield _Pair(int(tokens), int(others), worse, text)


def _case(where: str, pairs: list[_Pair]) -> Case:
    enough = [pair for pair in pairs if pair.ratio >= TIMES]
    # the nearest to the paper's factor, of those the one on most data; else the largest factor there is
    far = min(enough, key=lambda pair: (pair.ratio, -pair.tokens)) if enough else max(pairs, key=lambda p: p.ratio)
    near = [pair for pair in pairs if 1 / EQUAL <= pair.ratio <= EQUAL]
    equal = min(near, key=lambda pair: (max(pair.ratio, 1 / pair.ratio), -pair.tokens)) if near else None
    outcome = HOLDS if enough and far.matches else PARTLY if far.matches or (equal and equal.matches) else FAILS
    times = "as many tokens" if far is equal else f"{far.ratio:.3g} times the tokens"
    told = [f"{far.text} ({times})"]
    told += [f"at equal tokens {equal.text}"] if equal is not None and equal is not far else []
    told += [] if enough else [f"{TIMES:g} times the tokens were not measured"]
    return Case(where, outcome, "; ".join(told), far.worse.seeds)
