"""A comparison as a table: one line per setting, with the perplexities that it is measured against beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from pandas import DataFrame

from freelunch.reporting import labels
from freelunch.reporting.comparisons import AXES, PRUNED, WHERE, Group
from freelunch.reporting.estimates import Estimate, missing, of, ordered, suite, summary
from freelunch.reporting.table import Column, Contest, Line, Table

Key = tuple[Any, ...]
_COUNTS = ("training_tokens", "search_tokens", "trainable_parameters")


def table(
    name: str,
    groups: Sequence[Group],
    title: str,
    columns: Sequence[str] = (),
    levels: Sequence[str] = (),
    both: bool = False,
) -> Table:
    """One line per setting of the groups: test perplexity, some columns of the runs, and the baselines.

    Args:
        name: of the table.
        groups: a comparison along one axis.
        title: what is compared; where it was measured is added.
        columns: of the runs, shown after the perplexity.
        levels: shown besides the axis compared and the axes that differ.
        both: whether what is not recovered differs along the axis too, and is compared as well.
    """
    runs = pd.concat([group.runs for group in groups])
    axes = list(dict.fromkeys(group.axis for group in groups))
    shown = levelled(runs, [*axes, *levels])
    if both:
        # lines that are compared stand below each other
        shown = (*(axis for axis in shown if axis not in axes), *axes)
    rivals: list[list[Key]] = []
    lines: dict[Key, tuple[Estimate | None, ...]] = {}
    for group in groups:
        keys = ordered(group.runs, shown)
        rivals.append([missing(key) for key in keys])
        for key in keys:
            at = of(group.runs, shown, key)
            value = at[group.axis].iloc[0]
            cells = [summary(at), *(summary(at, column) for column in columns)]
            # what stands in two groups is the same run
            lines[missing(key)] = (*cells, group.baseline(value), summary(group.dense))
    built = assembled(name, runs, title, shown, lines, columns, rivals)
    return _before_and_after(built, rivals) if both else built


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
    lines: dict[Key, tuple[Estimate | None, ...]],
    columns: Sequence[str],
    rivals: Sequence[Sequence[Key]] = (),
) -> Table:
    """Lines in reading order under the perplexity, the columns and the baselines.

    Args:
        rivals: keys of lines whose perplexities are compared: of each of these the lowest is bold.
    """
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
    contests = tuple(Contest(tuple((keys.index(key), 0) for key in found)) for found in rivals)
    bold = "the lowest perplexity of runs that are compared with each other" if rivals else ""
    ranked: list[Line] = [(key, lines[key]) for key in keys]
    return Table(name, suite(runs), full, tuple(levels), heads, ranked, constants, contests, bold)


def _before_and_after(table: Table, rivals: Sequence[Sequence[Key]]) -> Table:
    """The table of an axis of pruning: what is not recovered stands first, and is compared too."""
    heads = {column.name: column for column in table.columns}
    heads["perplexity"] = Column("perplexity", "Recovered")
    order = ["dense", "none", "perplexity", *(name for name in heads if name not in ("dense", "none", "perplexity"))]
    places = [list(heads).index(name) for name in order]
    lines: list[Line] = [(key, tuple(cells[place] for place in places)) for key, cells in table.lines]
    keys = [key for key, _ in lines]
    contests = tuple(
        Contest(tuple((keys.index(key), order.index(name)) for key in found))
        for found in rivals
        for name in ("none", "perplexity")
    )
    bold = "the best before and the best after recovery of runs that are compared with each other"
    return replace(table, columns=tuple(heads[name] for name in order), lines=lines, contests=contests, bold=bold)
