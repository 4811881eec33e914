"""Common seeds: runs that are compared saw the same calibration draws, and so the same masks."""

from __future__ import annotations

from collections.abc import Sequence

from pandas import DataFrame, Series

_WITHOUT = -1
"""Stands for the seed of runs that have none, such as the dense model's."""


def aligned(runs: DataFrame, by: Sequence[str]) -> DataFrame:
    """The runs of settings, told apart by some columns, at the seeds that all of these have.

    Where no seed is common to all, the one that most settings have decides, and settings without it are left out.
    """
    if runs.empty:
        return runs
    seeds = _seeds(runs)
    setting = runs.groupby(list(by), dropna=False, sort=False).ngroup()
    held = [set(found) for _, found in seeds.groupby(setting)]

    def common(seed: int) -> set[int]:
        return set.intersection(*(found for found in held if seed in found))

    most = max(sorted(set(seeds)), key=lambda seed: (sum(seed in found for found in held), len(common(seed)), -seed))
    kept = setting.isin([place for place, found in enumerate(held) if most in found])
    return runs[kept & seeds.isin(common(most))]


def among(runs: DataFrame, others: DataFrame) -> DataFrame:
    """The runs at the seeds of others."""
    return runs[_seeds(runs).isin(_seeds(others))]


def _seeds(runs: DataFrame) -> Series[int]:
    return runs["seed"].fillna(_WITHOUT).astype(int)
