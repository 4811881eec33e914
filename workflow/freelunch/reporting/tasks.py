"""Zero-shot accuracies: of every task all that it has, the mean over tasks, and what guessing gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from pandas import DataFrame

from freelunch.errors import FreelunchError
from freelunch.reporting.comparisons import PRUNED
from freelunch.reporting.estimates import RECOVERING, Estimate, suite, summary, with_variant
from freelunch.reporting.seeds import aligned

METRICS = ("acc", "acc_norm", "exact_match", "pass@1")
"""The accuracies that tasks have; the first that a task has goes by the task's name alone."""
MEAN = "acc_mean"
CHANCE = "chance"
_AVERAGED = "acc"
"""What ``acc_mean`` is the mean of."""


class Kind(NamedTuple):
    """What an accuracy is of; ``way`` is how answers are read, where the task does that in several ways."""

    task: str
    metric: str
    way: str | None


@dataclass(frozen=True, eq=False)
class Scores:
    """Accuracies in percent.

    Attributes:
        kinds: what there is, by name: ``hellaswag``, ``hellaswag_acc_norm``; in the order of tasks.
        rows: one per run and kind, its name in ``task`` and the accuracy in ``value``; the mean is ``acc_mean``.
        chance: what guessing gives, by the same names, as far as it is known.
    """

    kinds: dict[str, Kind]
    rows: DataFrame
    chance: dict[str, float]


def scores(rows: DataFrame, view: str) -> Scores:
    """Collect the accuracies of all runs; those that were pruned alike are of the same seeds.

    Raises:
        FreelunchError: no pruned run was evaluated on a task.
    """
    found = rows[rows["metric"].isin([*METRICS, MEAN])]
    if found[found["criterion"] != "dense"].empty:
        raise FreelunchError(f"{view} needs zero-shot accuracies of pruned runs; suite {suite(rows)} has none")
    names = _named(found[found["metric"] != MEAN])
    found = with_variant(found).assign(
        task=[MEAN if kind.metric == MEAN else names[kind] for kind in _each(found)],
        value=100 * found["value"],
        stderr=100 * found["stderr"],
    )
    kinds = {name: kind for kind, name in names.items()}
    return Scores(kinds, _common(found), _chance(rows, kinds))


def accuracy(runs: DataFrame, name: str) -> Estimate | None:
    """Mean over seeds of an accuracy, or of the mean over tasks; with one run the error is that of the task."""
    return summary(runs[runs["task"] == name])


def _named(found: DataFrame) -> dict[Kind, str]:
    kinds = sorted(set(_each(found)), key=lambda kind: (kind.task, METRICS.index(kind.metric), kind.way or ""))
    first: dict[str, str] = {}
    for kind in kinds:
        first.setdefault(kind.task, kind.metric)
    return {kind: _name(kind, first[kind.task]) for kind in kinds}


def _name(kind: Kind, first: str) -> str:
    return "_".join([kind.task, *([] if kind.metric == first else [kind.metric]), *([kind.way] if kind.way else [])])


def _each(found: DataFrame) -> list[Kind]:
    columns = zip(found["dataset"], found["metric"], found["position"], strict=True)
    return [Kind(str(task), str(metric), None if pd.isna(way) else str(way)) for task, metric, way in columns]


def _common(found: DataFrame) -> DataFrame:
    dense = found["criterion"] == "dense"
    groups = found[~dense].groupby(["model", *PRUNED], dropna=False, sort=False)
    return pd.concat([found[dense], *(aligned(group, ["variant", *RECOVERING]) for _, group in groups)])


def _chance(rows: DataFrame, kinds: dict[str, Kind]) -> dict[str, float]:
    found = rows[rows["metric"] == CHANCE].drop_duplicates("dataset").set_index("dataset")["value"]
    # who guesses is as often right however the log-likelihoods of answers are compared
    chance = {name: 100 * float(found[kind.task]) for name, kind in kinds.items() if kind.task in found.index}
    averaged = [chance.get(name, math.nan) for name, kind in kinds.items() if kind.metric == _AVERAGED]
    if averaged and not any(map(math.isnan, averaged)):
        chance[MEAN] = float(np.mean(averaged))
    return chance
