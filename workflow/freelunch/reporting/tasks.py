"""Zero-shot accuracies: of every task one metric, their mean, and what guessing gives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pandas import DataFrame

from ..errors import FreelunchError
from .comparisons import PRUNED
from .estimates import RECOVERING, Estimate, suite, summary, with_variant
from .seeds import aligned

METRICS = ("acc", "acc_norm", "exact_match", "pass@1")
"""Of a task with several of these the first is shown."""
MEAN = "acc_mean"
CHANCE = "chance"


@dataclass(frozen=True, eq=False)
class Scores:
    """Accuracies in percent.

    Attributes:
        tasks: names of the tasks, with the metric that is shown of each.
        rows: one per run and task, the task in ``task`` and the accuracy in ``value``; the mean is task ``acc_mean``.
        chance: what guessing gives in every task, and on average, as far as it is known.
    """

    tasks: dict[str, str]
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
    tasks = {}
    for task in sorted(found[found["metric"] != MEAN]["dataset"].unique()):
        metrics = set(found[found["dataset"] == task]["metric"])
        tasks[str(task)] = next(metric for metric in METRICS if metric in metrics)
    shown = (found["metric"] == found["dataset"].map(tasks)) | (found["metric"] == MEAN)
    found = with_variant(found[shown])
    found = found.assign(
        task=found["dataset"].mask(found["metric"] == MEAN, MEAN),
        value=100 * found["value"],
        stderr=100 * found["stderr"],
    )
    return Scores(tasks, _common(found), _chance(rows, [*tasks]))


def accuracy(runs: DataFrame, task: str) -> Estimate | None:
    """Mean accuracy over seeds in one task, or in their mean; with one run the error is that of the task."""
    return summary(runs[runs["task"] == task])


def _common(found: DataFrame) -> DataFrame:
    dense = found["criterion"] == "dense"
    groups = found[~dense].groupby(["model", *PRUNED], dropna=False, sort=False)
    return pd.concat([found[dense], *(aligned(group, ["variant", *RECOVERING]) for _, group in groups)])


def _chance(rows: DataFrame, tasks: list[str]) -> dict[str, float]:
    found = rows[rows["metric"] == CHANCE].drop_duplicates("dataset").set_index("dataset")["value"]
    chance = {task: 100 * float(found[task]) for task in tasks if task in found.index}
    if len(chance) == len(tasks) and tasks and not any(map(math.isnan, chance.values())):
        chance[MEAN] = float(np.mean(list(chance.values())))
    return chance
