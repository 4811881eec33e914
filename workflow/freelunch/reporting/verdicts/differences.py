"""Differences of log-perplexity between runs of the same seeds, with their errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from pandas import DataFrame, Series

ERRORS = 2.0
"""Standard errors that a difference must exceed to count: with few seeds, one is often exceeded by chance."""


class Difference(NamedTuple):
    """A mean over seeds and its standard error, NaN where there is one seed."""

    value: float
    stderr: float
    seeds: int

    @property
    def positive(self) -> bool:
        """Whether it is above zero by more than :data:`ERRORS` standard errors; with one seed, at all."""
        return self.value > 0 and not self.value <= ERRORS * self.stderr


def over(values: Sequence[float]) -> Difference:
    """The mean of one value per seed."""
    array = np.asarray(values, float)
    known = len(array) > 1 and bool(np.isfinite(array).all())
    stderr = float(array.std(ddof=1)) / math.sqrt(len(array)) if known else math.nan
    return Difference(float(array.mean()), stderr, len(array))


def apart(first: Difference, second: Difference) -> Difference:
    """First minus second, where their seeds have nothing in common."""
    stderr = math.hypot(first.stderr, second.stderr)
    return Difference(first.value - second.value, stderr, min(first.seeds, second.seeds))


def logs(runs: DataFrame) -> Series[float]:
    """Log-perplexity by seed; what diverged (NaN) counts as infinite. The dense model's seed is -1."""
    seeds = runs["seed"].fillna(-1).astype(int).to_numpy()
    values = runs["value"].to_numpy(float)
    found = pd.Series(np.log(np.where(np.isnan(values), math.inf, values)), index=seeds)
    return found.groupby(level=0).mean()


def between(first: DataFrame, second: DataFrame) -> Difference | None:
    """Log-perplexity of the first runs minus that of the second, seed by seed; None if no seed is common."""
    one, other = logs(first), logs(second)
    common = one.index.intersection(other.index)
    if common.empty:
        return None
    with np.errstate(invalid="ignore"):
        return over(list(one[common].to_numpy(float) - other[common].to_numpy(float)))


def spreads(settings: Iterable[DataFrame]) -> dict[int, float]:
    """By seed, the highest log-perplexity of some settings minus the lowest, at the seeds that all have."""
    found = pd.concat([logs(runs) for runs in settings], axis=1, join="inner")
    with np.errstate(invalid="ignore"):
        return {int(str(seed)): float(row.max() - row.min()) for seed, row in found.iterrows()}


def lowest(settings: dict[str, DataFrame]) -> str:
    """The setting with the lowest mean log-perplexity."""
    return min(settings, key=lambda name: float(logs(settings[name]).mean()))


def highest(settings: dict[str, DataFrame]) -> str:
    """The setting with the highest mean log-perplexity."""
    return max(settings, key=lambda name: float(logs(settings[name]).mean()))
