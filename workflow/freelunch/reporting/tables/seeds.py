"""Perplexity of every setting over seeds: each draws its own calibration set, and so its own masks."""

from __future__ import annotations

import math

import numpy as np
from pandas import DataFrame

from freelunch.errors import FreelunchError
from freelunch.reporting import labels
from freelunch.reporting.comparisons import AXES, WHERE, measured
from freelunch.reporting.estimates import RECOVERING, Estimate, estimate, ordered, suite, with_variant
from freelunch.reporting.findings import joined, shown
from freelunch.reporting.style import printed
from freelunch.reporting.table import Column, Line, Table

_VIEW = "table seeds"
_COLUMNS = (
    Column("perplexity", "Perplexity"),
    Column("deviation", "Standard deviation"),
    Column("relative", "Standard deviation (% of the mean)"),
    Column("lowest", "Lowest"),
    Column("highest", "Highest"),
    Column("seeds", "Seeds", "count"),
)


def build(rows: DataFrame) -> Table:
    """Mean, standard error and spread of every setting that was run with at least two seeds.

    Raises:
        FreelunchError: there is none.
    """
    runs = _repeated(rows)
    always = ("model", "criterion", "pattern", "variant")
    told = [axis for axis in AXES if axis not in ("window", "recovery")]
    order = (*(axis for axis in told if axis not in RECOVERING), "variant", *RECOVERING)
    # what a recovery lacks tells nothing apart that its name does not
    levels = tuple(axis for axis in order if axis in always or runs[axis].nunique() > 1)
    constants = {axis: runs[axis].iloc[0] for axis in ("dataset", "length") if axis not in levels}
    groups = runs.groupby([*AXES, "variant"], dropna=False, sort=False)
    lines: list[Line] = [(tuple(group[axis].iloc[0] for axis in levels), _cells(group)) for _, group in groups]
    lines.sort(key=lambda line: [labels.order(axis, part) for axis, part in zip(levels, line[0], strict=True)])
    on = f" on {constants['dataset']}" if "dataset" in constants else ""
    title = f"Test perplexity{on} over seeds, each with a calibration set of its own; lower is better."
    return Table("seeds", suite(rows), title, levels, _COLUMNS, lines, constants)


def caption(rows: DataFrame) -> str:
    """How much seeds matter: the least and the most scattered setting of every data set."""
    runs = _repeated(rows)
    sentences = []
    for where in ordered(runs, WHERE):
        here = runs[(runs[list(WHERE)] == list(where)).all(axis=1)]
        groups = [group for _, group in here.groupby([*AXES, "variant"], dropna=False, sort=False)]
        ranked = sorted(groups, key=_relative)
        ends = [ranked[0], ranked[-1]] if len(ranked) > 1 else ranked
        told = [
            f"{_name(group)} {shown(estimate(list(group['value'])))} ({printed(_relative(group))}%)" for group in ends
        ]
        sentences.append((f"{where[0]}, {where[1]}", " to ".join(told)))
    return "Here: standard deviation over seeds, least to most scattered. " + joined(sentences)


def selected(rows: DataFrame) -> DataFrame:
    """Perplexities of the settings that there are several seeds of."""
    return _repeated(rows)


def _repeated(rows: DataFrame) -> DataFrame:
    runs = with_variant(measured(rows, _VIEW))
    runs = runs[runs["criterion"] != "dense"]
    seeds = runs.groupby([*AXES, "variant"], dropna=False, sort=False)["seed"].transform("nunique")
    if not (seeds > 1).any():
        raise FreelunchError(f"{_VIEW} needs a setting that was run with at least two seeds; "
                             f"suite {suite(rows)} has none")  # fmt: skip
    return runs[seeds > 1]


def _cells(group: DataFrame) -> tuple[Estimate | None, ...]:
    values = group["value"].to_numpy(float)
    deviation = float(np.std(values, ddof=1)) if np.isfinite(values).all() else math.nan
    single = (deviation, _relative(group), float(values.min()), float(values.max()), float(len(values)))
    return (estimate(list(values)), *(Estimate(value, runs=len(values)) for value in single))


def _relative(group: DataFrame) -> float:
    """Standard deviation in percent of the mean; not finite where a value is not."""
    values = group["value"].to_numpy(float)
    return 100 * float(np.std(values, ddof=1) / np.mean(values)) if np.isfinite(values).all() else math.inf


def _name(group: DataFrame) -> str:
    return ", ".join(labels.value(axis, group[axis].iloc[0]) for axis in ("criterion", "pattern", "variant"))
