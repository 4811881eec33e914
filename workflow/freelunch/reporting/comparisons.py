"""Controlled comparisons: runs that are equal in every axis but one, with what they are measured against."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pandas import DataFrame, Series

from freelunch.errors import FreelunchError
from freelunch.reporting import labels
from freelunch.reporting.estimates import PRUNING, RECOVERING, Estimate, of, on_text, ordered, suite, summary
from freelunch.reporting.seeds import aligned, among

WHERE = ("model", "dataset", "length")
PRUNED = (*PRUNING, "criterion", "pattern")
AXES = (*WHERE, *PRUNED, "recovery", "window", *RECOVERING)
"""Everything that tells settings apart, but for the seed, which is averaged over."""


@dataclass(frozen=True, eq=False)
class Group:
    """Recovered runs that differ in one axis (and those said to be free), one row per run, perplexity in ``value``.

    Every value is that of the same seeds, and so are the baselines.

    Attributes:
        setting: the axes they share, with their values.
        alone: runs that were pruned alike and not recovered.
        dense: runs of the dense model.
    """

    axis: str
    setting: dict[str, Any]
    runs: DataFrame
    alone: DataFrame
    dense: DataFrame

    @property
    def values(self) -> list[Any]:
        """Values of the axis in reading order."""
        return [value for (value,) in ordered(self.runs, [self.axis])]

    def at(self, value: Any) -> DataFrame:
        """The runs with a value of the axis."""
        return of(self.runs, [self.axis], [value])

    def estimate(self, value: Any, column: str = "value") -> Estimate | None:
        """Mean of a column over the seeds at a value of the axis; of the perplexity if no column is named."""
        return summary(self.at(value), column)

    def baseline(self, value: Any = None) -> Estimate | None:
        """Perplexity without recovery; where the axis is one of pruning, of the runs with this value of it."""
        varies = self.axis in PRUNED and value is not None
        return summary(of(self.alone, [self.axis], [value]) if varies else self.alone)


def rows_of(groups: Iterable[Group], rows: DataFrame) -> DataFrame:
    """The test perplexities of the runs in groups, and of those that they are measured against."""
    names = {run for group in groups for runs in (group.runs, group.alone, group.dense) for run in runs["run"]}
    found = on_text(rows)
    return found[found["run"].isin(names) & (found["split"] == "test")]


def measured(rows: DataFrame, view: str, split: str = "test") -> DataFrame:
    """One row per run, data set and length: the perplexity of a split in ``value``.

    Raises:
        FreelunchError: no pruned run has such a perplexity.
    """
    found = on_text(rows)
    found = found[found["split"] == split]
    if found[found["criterion"] != "dense"].empty:
        raise FreelunchError(f"{view} needs the {split} perplexity of pruned runs; suite {suite(rows)} has none")
    return found


def recovered(runs: DataFrame, how: str | None = None) -> DataFrame:
    """The runs that were recovered, or recovered in one way."""
    return runs[runs["recovery"] == how if how else runs["recovery"] != labels.NOT_RECOVERED]


def validation(rows: DataFrame, view: str) -> Series[float]:
    """Validation perplexity by run: on the data it was calibrated with if there is one, at the longest length.

    Raises:
        FreelunchError: no pruned run has one.
    """
    found = measured(rows, view, "validation")
    found = found.assign(home=found["dataset"] == found["calibration"]).sort_values(["home", "dataset", "length"])
    return found.drop_duplicates("run", keep="last").set_index("run")["value"].astype(float)


def along(runs: DataFrame, axis: str, free: Sequence[str] = (), told: Sequence[str] = ()) -> list[Group]:
    """Groups of recovered runs that are equal in every axis but one, and have at least two values of it.

    Of every value there are the seeds that all values have; a value that shares none with the others is left out. So
    it is with runs that are not recovered, where the axis is one of pruning and every value has its own.

    Args:
        runs: of :func:`measured`; those that are dense or not recovered become the groups' baselines.
        axis: the axis compared. Runs that do not have it are in no group.
        free: axes that may differ as well: they follow from the axis, or tell lines of a figure apart.
        told: columns beside the axes that runs of a group share.
    """
    shared = [name for name in (*AXES, *told) if name not in (axis, *free)]
    pruned = [name for name in (*WHERE, *PRUNED) if name in shared]
    candidates = recovered(runs)
    candidates = candidates[candidates[axis].notna()]
    alone = runs[(runs["recovery"] == labels.NOT_RECOVERED) & (runs["criterion"] != "dense")]
    dense = runs[runs["criterion"] == "dense"]
    found = []
    for _, group in candidates.groupby(shared, dropna=False, sort=False):
        if len(group) < 2:
            continue  # before anything is asked of the many that are alone
        group = aligned(group, [axis, *free])
        if group[axis].nunique() < 2:
            continue
        setting = {name: group[name].iloc[0] for name in shared}
        beside = among(of(alone, pruned, [setting[name] for name in pruned]), group)
        if axis in PRUNED:
            group, beside = _paired(group, beside, [axis, *free])
            if group[axis].nunique() < 2:
                continue
        found.append(Group(axis, setting, group, beside, of(dense, WHERE, [setting[name] for name in WHERE])))
    return sorted(found, key=lambda group: [labels.order(name, group.setting[name]) for name in shared])


def _paired(runs: DataFrame, alone: DataFrame, by: Sequence[str]) -> tuple[DataFrame, DataFrame]:
    """Runs before and after recovery at the seeds that all values have on both sides; some may have one side alone."""
    alone = alone[alone[by[0]].isin(runs[by[0]])]
    both = aligned(pd.concat([runs, alone], keys=(True, False), names=["after"]).reset_index("after"), ["after", *by])
    after = both["after"].astype(bool)
    return both[after].drop(columns="after"), both[~after].drop(columns="after")


def fullest(groups: Sequence[Group]) -> list[Group]:
    """Of the groups that were measured and pruned alike those with the most values of the axis."""
    place = [tuple(str(group.setting.get(name)) for name in (*WHERE, *PRUNED)) for group in groups]
    most: dict[tuple[str, ...], int] = {}
    for where, group in zip(place, groups, strict=True):
        most[where] = max(most.get(where, 0), len(group.values))
    return [group for where, group in zip(place, groups, strict=True) if len(group.values) == most[where]]


def varying(settings: Iterable[dict[str, Any]]) -> list[str]:
    """The axes in which settings differ, in the order of :data:`AXES`."""
    listed = list(settings)
    seen: dict[str, set[Any]] = {}
    for setting in listed:
        for name, value in setting.items():
            seen.setdefault(name, set()).add(None if pd.isna(value) else value)
    order = [*AXES, *(name for name in seen if name not in AXES)]
    return [name for name in order if len(seen.get(name, ())) > 1]


def best(runs: DataFrame, cell: Sequence[str], rows: DataFrame, view: str) -> DataFrame:
    """Of all settings that share a cell the runs of one: of that with the lowest validation perplexity.

    The settings are compared at the seeds that all of them have. A mean over these that is not finite never wins,
    unless all are such: then the first does.

    Raises:
        FreelunchError: a cell has several settings, and not all runs compared have a validation perplexity.
    """
    rest = [name for name in AXES if name not in cell and name not in ("dataset", "length")]
    kept = []
    for _, group in runs.groupby(list(cell), dropna=False, sort=False):
        if group["run"].nunique() == 1:
            kept.append(group)
            continue
        settings = ordered(group, rest)
        if len(settings) > 1:
            fair = aligned(group, rest)
            fair = fair.assign(by=fair["run"].map(validated(fair, rows, view)))
            settings = ordered(fair, rest)
            means = [float(of(fair, rest, setting)["by"].mean(skipna=False)) for setting in settings]
            settings = [settings[lowest(means)]]
        kept.append(of(group, rest, settings[0]))
    return pd.concat(kept) if kept else runs


def preferred(runs: DataFrame, axis: str, wanted: Sequence[str]) -> str | None:
    """The first of the values wanted that an axis has; if it has none of them its first, if it has any."""
    present: list[str] = [value for (value,) in ordered(runs.dropna(subset=[axis]), [axis])]
    return next((value for value in wanted if value in present), present[0] if present else None)


def validated(runs: DataFrame, rows: DataFrame, view: str) -> Series[float]:
    """As :func:`validation`, of all these runs.

    Raises:
        FreelunchError: a run has none; the message names it.
    """
    found = validation(rows, view)
    without = sorted(set(runs["run"]) - set(found.index))
    if without:
        raise FreelunchError(f"{view} needs the validation perplexity of every run that it chooses from; "
                             f"{without[0]} of suite {suite(rows)} has none")  # fmt: skip
    return found


def lowest(values: Sequence[float]) -> int:
    """Place of the lowest value; what is not finite comes last."""
    return min(range(len(values)), key=lambda place: values[place] if math.isfinite(values[place]) else math.inf)
