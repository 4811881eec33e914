"""Sweeps over learning rates and epochs, and which run of them is selected by what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from pandas import DataFrame

from freelunch.errors import FreelunchError
from freelunch.reporting.comparisons import Group, along, lowest, measured, validated
from freelunch.reporting.estimates import Estimate, estimate, of, ordered, suite, summary

AUTO = "auto"


class Point(NamedTuple):
    """One setting of a sweep: perplexities are means over seeds, seconds and runs add up over them."""

    learning_rate: str
    epochs: int
    validation: Estimate
    test: Estimate
    seconds: float
    runs: int


class Choice(NamedTuple):
    """A setting that was selected, by what, and what it took to find and train it."""

    by: str
    point: Point
    seconds: float
    runs: int


@dataclass(frozen=True)
class Sweep:
    """Runs that are equal but for learning rate and epochs; ``auto`` are those that search their own rate."""

    group: Group
    points: list[Point]
    auto: list[Point]

    def choices(self) -> list[Choice]:
        """By the validation and by the test perplexity, each at the cost of the sweep.

        ``auto`` is one choice more, at its own cost: of all lengths it was tried with, the one that the validation
        perplexity selects.
        """
        whole = sum(point.seconds for point in self.points), sum(point.runs for point in self.points)
        found = [
            Choice("validation", self.points[lowest([point.validation.value for point in self.points])], *whole),
            Choice("test", self.points[lowest([point.test.value for point in self.points])], *whole),
        ]
        if self.auto:
            chosen = self.auto[lowest([point.validation.value for point in self.auto])]
            cost = sum(point.seconds for point in self.auto), sum(point.runs for point in self.auto)
            found.append(Choice(AUTO, chosen, *cost))
        return found


def sweeps(rows: DataFrame, view: str) -> list[Sweep]:
    """All sweeps of at least two learning rates; the validation perplexity is that on the calibration data.

    Raises:
        FreelunchError: there is no such sweep, or no validation perplexity to select by.
    """
    found = []
    for group in along(measured(rows, view), "learning_rate", ("epochs",)):
        runs = group.runs.assign(validation=group.runs["run"].map(validated(group.runs, rows, view)))
        points = [_point(runs, *setting) for setting in ordered(runs, ["learning_rate", "epochs"])]
        sweep = [point for point in points if point.learning_rate != AUTO]
        if len({point.learning_rate for point in sweep}) > 1:
            found.append(Sweep(group, sweep, [point for point in points if point.learning_rate == AUTO]))
    if not found:
        raise FreelunchError(f"{view} needs recovered runs that differ in learning rate alone; "
                             f"suite {suite(rows)} has none")  # fmt: skip
    return found


def _point(runs: DataFrame, learning_rate: str, epochs: Any) -> Point:
    at = of(runs, ["learning_rate", "epochs"], [learning_rate, epochs])
    test = summary(at)
    assert test is not None
    return Point(
        learning_rate, int(epochs), estimate(list(at["validation"])), test, float(at["seconds"].sum()), len(at)
    )
