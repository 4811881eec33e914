"""Means over seeds with their standard errors, and which axes tell the runs of a suite apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas import DataFrame

from freelunch.errors import FreelunchError
from freelunch.reporting import labels

PRUNING = (
    "calibration",
    "sequences",
    "calibration_tokens",
    "validation_sequences",
    "sampling",
    "allocation",
    "refinement",
    "prune_inputs",
    "calibration_images",
)
TRAINING = (
    "loss",
    "optimizer",
    "learning_rate",
    "schedule",
    "warmup",
    "epochs",
    "batch_size",
    "accumulation",
    "clip",
    "patience",
)
"""Axes that a recovery in closed form does not have."""
RECOVERING = ("flow", "parametrization", "targets", "repair", "backend", *TRAINING, "training_sequences")
"""Axes of the recovery alone: a run that is not recovered stands beside every one of their values."""


class Estimate(NamedTuple):
    """A number with its standard error: over seeds if there are several runs, the metric's own if there is one."""

    value: float
    stderr: float = math.nan
    runs: int = 1


def estimate(values: Sequence[float], stderrs: Sequence[float] = ()) -> Estimate:
    """Mean over seeds. A value that is not finite makes the mean so: a diverged seed is never left out."""
    if len(values) == 1:
        return Estimate(float(values[0]), float(stderrs[0]) if len(stderrs) else math.nan)
    if not np.isfinite(values).all():
        return Estimate(math.nan if np.isnan(values).any() else math.inf, math.nan, len(values))
    apart = np.subtract(values, values[0])  # exactly 0 where seeds do not matter
    return Estimate(float(np.mean(values)), float(np.std(apart, ddof=1)) / math.sqrt(len(values)), len(values))


def summary(runs: DataFrame, column: str = "value") -> Estimate | None:
    """Mean of a column over runs; None if no run has it. Measured values (``value``) count even if they are NaN."""
    if column == "value":
        return estimate(list(runs["value"]), list(runs["stderr"])) if len(runs) else None
    values = [float(value) for value in runs[column].dropna()]
    if not values:
        return None
    found = estimate(values)
    # what a setting prescribes does not scatter: "± 0" would only be noise
    return found if found.stderr else Estimate(found.value, math.nan, found.runs)


def with_variant(rows: DataFrame) -> DataFrame:
    """Add the column ``variant``: ``dense``, ``none`` (not recovered), the window, or the recovery without windows."""
    variant = rows["window"].where(rows["window"].notna(), rows["recovery"])
    return rows.assign(variant=variant.where(rows["criterion"] != "dense", "dense"))


def levels(rows: DataFrame, cell: Sequence[str]) -> tuple[str, ...]:
    """The axes without which runs of different settings would fall into one cell; seeds are meant to."""
    chosen: list[str] = []
    for axis in (*PRUNING, *RECOVERING):
        before, after = ([*cell, *chosen], [*cell, *chosen, axis])
        if len(rows[after].drop_duplicates()) > len(rows[before].drop_duplicates()):
            chosen.append(axis)
    return tuple(chosen)


def suite(rows: DataFrame) -> str:
    """Name of the suite the rows are of, for messages and labels."""
    return ", ".join(sorted(rows["suite"].dropna().unique())) or "without a name"


def of(frame: DataFrame, names: Sequence[str], values: Sequence[Any]) -> DataFrame:
    """The rows with these values; what is missing equals what is missing."""
    found = np.ones(len(frame), bool)
    for name, value in zip(names, values, strict=True):
        column = frame[name]
        found &= (column.isna() if pd.isna(value) else (column == value).fillna(False)).to_numpy(bool)
    return frame[found]


def ordered(frame: DataFrame, names: Sequence[str]) -> list[tuple[Any, ...]]:
    """The distinct combinations of some columns, in the order a reader expects."""
    found = [tuple(row) for row in frame[list(names)].drop_duplicates().itertuples(index=False)]
    return sorted(found, key=lambda row: [labels.order(*pair) for pair in zip(names, row, strict=True)])


@dataclass(frozen=True)
class Cells:
    """A number by setting (``levels``) and by variant; settings and variants are in reading order."""

    levels: tuple[str, ...]
    settings: list[tuple[Any, ...]]
    variants: list[str]
    cells: dict[tuple[tuple[Any, ...], str], Estimate]


def perplexities(rows: DataFrame, view: str) -> Cells:
    """Collect the perplexities of pruned runs on held-out text, the dense model's beside each of them.

    A data set whose split is not ``test`` is called ``c4 (validation)``.

    Raises:
        FreelunchError: no pruned run has such a perplexity; the message names the view that needs one.
    """
    found = held_out(on_text(rows))
    if found[found["criterion"] != "dense"].empty:
        raise FreelunchError(f"{view} needs a perplexity of pruned runs; suite {suite(rows)} has none")
    tested = found["split"] == "test"
    return cells(found.assign(dataset=found["dataset"].where(tested, found["dataset"] + labels.UNTESTED)))


def on_text(rows: DataFrame) -> DataFrame:
    """The perplexities, of all data sets, splits and lengths."""
    return rows[rows["metric"].str.startswith("ppl@", na=False)]


def held_out(measured: DataFrame) -> DataFrame:
    """Of every data set the rows of its test split, or of its validation split if it is not tested on.

    C4 has no test split: what the literature calls its perplexity is that of validation text.
    """
    found = measured[measured["split"].isin(["test", "validation"])]
    tests = found["split"] == "test"
    return found[tests | ~found["dataset"].isin(found.loc[tests, "dataset"])]


def cells(measured: DataFrame) -> Cells:
    """One metric of pruned runs by setting and variant, the dense model's beside each of them.

    Args:
        measured: one row per run, data set and length; at least one of a pruned run.
    """
    found = with_variant(measured)
    pruned = found[found["variant"] != "dense"]
    where = ("model", "dataset", "length")
    extra = levels(pruned, (*where, "criterion", "pattern", "variant"))
    of_pruning, of_recovery = ([axis for axis in extra if axis in axes] for axes in (PRUNING, RECOVERING))
    names = (*where, *of_pruning, "criterion", "pattern", *of_recovery)
    recovered = pruned[pruned["variant"] != labels.NOT_RECOVERED]
    settings = ordered(recovered, names)
    shared = [name for name in names if name not in RECOVERING]
    kept = [names.index(name) for name in shared]
    known = {tuple(setting[i] for i in kept) for setting in settings}
    alone = [setting for setting in ordered(pruned.drop(recovered.index), names) if _at(setting, kept) not in known]
    settings = ordered(DataFrame([*settings, *alone], columns=list(names)), names) if alone else settings
    variants = [variant for (variant,) in ordered(found, ["variant"])]
    table: dict[tuple[tuple[Any, ...], str], Estimate] = {}
    for variant in variants:
        by = list(where) if variant == "dense" else shared if variant == labels.NOT_RECOVERED else list(names)
        at = [names.index(name) for name in by]
        groups = found[found["variant"] == variant].groupby(by, dropna=False)
        values = {missing(key): estimate(list(group["value"]), list(group["stderr"])) for key, group in groups}
        table |= {(s, variant): values[missing(_at(s, at))] for s in settings if missing(_at(s, at)) in values}
    return Cells(names, settings, variants, table)


def _at(setting: tuple[Any, ...], places: list[int]) -> tuple[Any, ...]:
    return tuple(setting[place] for place in places)


def missing(key: Any) -> tuple[Any, ...]:
    """A key that compares equal where values are missing."""
    return tuple(None if pd.isna(part) else part for part in key)
