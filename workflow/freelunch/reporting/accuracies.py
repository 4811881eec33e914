"""Accuracies of classifiers: by network, sparsity, allocation and backend, each a mean over seeds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from pandas import DataFrame, Series

from freelunch.errors import FreelunchError
from freelunch.reporting.estimates import Estimate, estimate, of, ordered, suite

SETTING = ("model", "sparsity", "allocation", "backend", "seed")
"""What tells the accuracies of a view apart."""
RECALIBRATED, CONTROL, MATCHED = "recalibrate", "recalibrate_epsilon", "shrink"
"""Backends that comparisons are about: recalibration layer by layer, the same with a much smaller epsilon, and the
repair by activation statistics."""
REPAIRS = ("channel", "layer", "shrink")
PAIR = ("erk", "lamp")
"""The allocations that the second paper compares."""
GLOBAL = "global"
"""What a threshold over the whole network is called among allocations."""


def accuracies(rows: DataFrame, view: str) -> DataFrame:
    """Test accuracies in percent, of pruned classifiers and, with ``criterion`` dense, of those before pruning.

    A pattern over the whole network is the allocation ``global``.

    Raises:
        FreelunchError: no pruned classifier was measured, or runs differ in something else than :data:`SETTING`.
    """
    found = classified(rows[(rows["metric"] == "accuracy") & (rows["split"] == "test")])
    if found[found["criterion"] != "dense"].empty:
        raise FreelunchError(f"{view} needs accuracies of pruned classifiers; suite {suite(rows)} has none")
    pruned = found[found["criterion"] != "dense"]
    twice = pruned[pruned.duplicated(list(SETTING), keep=False)]
    if len(twice):
        told = ", ".join(f"{axis} {twice[axis].iloc[0]}" for axis in SETTING)
        raise FreelunchError(
            f"{view} compares runs of one criterion, kind of pattern and calibration; suite {suite(rows)} has "
            f"{twice['run'].nunique()} runs that are alike otherwise ({told}, …)"
        )
    return found.assign(value=100 * found["value"], stderr=100 * found["stderr"])


def classified(rows: DataFrame) -> DataFrame:
    """Rows with ``global`` among the allocations."""
    whole = rows["pattern"].str.endswith(" global").fillna(False).astype(bool)
    return rows.assign(allocation=rows["allocation"].mask(whole, GLOBAL))


def mean(frame: DataFrame, **values: Any) -> Estimate | None:
    """Mean over seeds of the rows with these values; None if there is none."""
    found = of(frame, list(values), list(values.values()))
    return estimate(list(found["value"]), list(found["stderr"])) if len(found) else None


def present(frame: DataFrame, axis: str) -> list[Any]:
    """The values of an axis among pruned classifiers, in reading order."""
    return [value for (value,) in ordered(frame[frame["criterion"] != "dense"], [axis])]


def difference(frame: DataFrame, first: dict[str, Any], second: dict[str, Any]) -> Estimate | None:
    """Mean over common seeds of the first less the second setting; None without a common seed.

    With one seed there is no error: both are the same network on the same images.
    """
    one, other = (_by_seed(of(frame, list(each), list(each.values()))) for each in (first, second))
    common = sorted(set(one.index) & set(other.index))
    return estimate([float(one[seed] - other[seed]) for seed in common]) if common else None


def clear(found: Estimate, least: float = 1.0) -> bool:
    """Whether a difference is at least ``least`` points and, where there are seeds, more than two standard errors."""
    error = found.stderr if np.isfinite(found.stderr) else 0.0
    return abs(found.value) >= least and abs(found.value) > 2 * error


def told(values: Iterable[tuple[str, Estimate | None]]) -> str:
    """``90% 1.2 ± 0.4, 93% -3``: differences with their sign."""
    return ", ".join(f"{name} {signed(found)}" for name, found in values if found is not None)


def signed(found: Estimate) -> str:
    """``+1.2 ± 0.4``."""
    # equal differences leave rounding
    error = f" ± {found.stderr:.2g}" if np.isfinite(found.stderr) and found.stderr > 1e-9 else ""
    return f"{found.value:+.1f}{error}"


def percent(sparsity: float) -> str:
    """``95.5%``."""
    return f"{100 * sparsity:g}%"


def _by_seed(runs: DataFrame) -> Series[float]:
    return runs.groupby("seed")["value"].mean()
