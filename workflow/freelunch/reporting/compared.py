"""A comparison as a table: one line per setting, with the perplexities that it is measured against beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from pandas import DataFrame

from . import labels
from .comparisons import AXES, PRUNED, WHERE, Group
from .estimates import Estimate, missing, of, ordered, suite, summary
from .table import Column, Table

_COUNTS = ("training_tokens", "search_tokens", "trainable_parameters")


def table(
    name: str, groups: Sequence[Group], title: str, columns: Sequence[str] = (), levels: Sequence[str] = ()
) -> Table:
    """One line per setting of the groups: test perplexity, some columns of the runs, and the baselines.

    Args:
        name: of the table.
        groups: a comparison along one axis.
        title: what is compared; where it was measured is added.
        columns: of the runs, shown after the perplexity.
        levels: shown besides the axis compared and the axes that differ.
    """
    runs = pd.concat([group.runs for group in groups])
    shown = levelled(runs, [*dict.fromkeys(group.axis for group in groups), *levels])
    lines: dict[tuple[Any, ...], tuple[Estimate | None, ...]] = {}
    for group in groups:
        for key in ordered(group.runs, shown):
            at = of(group.runs, shown, key)
            value = at[group.axis].iloc[0]
            cells = [summary(at), *(summary(at, column) for column in columns)]
            # what stands in two groups is the same run
            lines[missing(key)] = (*cells, group.baseline(value), summary(group.dense))
    return assembled(name, runs, title, shown, lines, columns)


def levelled(runs: DataFrame, wanted: Sequence[str]) -> tuple[str, ...]:
    """The model, criterion, pattern and the levels wanted, with every axis that differs, in reading order."""
    always = ("model", "criterion", "pattern", *wanted)
    order = (*WHERE, *PRUNED, *AXES, *wanted)
    return tuple(dict.fromkeys(axis for axis in order if axis in always or runs[axis].nunique(dropna=False) > 1))


def assembled(
    name: str,
    runs: DataFrame,
    title: str,
    levels: Sequence[str],
    lines: dict[tuple[Any, ...], tuple[Estimate | None, ...]],
    columns: Sequence[str],
) -> Table:
    """Lines in reading order under the perplexity, the columns and the baselines."""
    keys = sorted(lines, key=lambda key: [labels.order(axis, part) for axis, part in zip(levels, key, strict=True)])
    heads = (
        Column("perplexity", "Perplexity"),
        *(Column(column, labels.axis(column), "count" if column in _COUNTS else "number") for column in columns),
        Column("none", labels.value("variant", "none")),
        Column("dense", labels.value("variant", "dense")),
    )
    constants = {axis: runs[axis].iloc[0] for axis in ("dataset", "length") if axis not in levels}
    on = f" on {constants['dataset']}" if "dataset" in constants else ""
    length = f" of {constants['length']} tokens" if "length" in constants else ""
    full = f"{title}: test perplexity{on} in non-overlapping windows{length}; lower is better."
    return Table(name, suite(runs), full, tuple(levels), heads, [(key, lines[key]) for key in keys], constants)
