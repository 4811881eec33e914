"""The tables of a study: each builder is a view of the rows, in numbers. ``rendering`` writes them as text."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from pandas import DataFrame

from ..errors import FreelunchError
from . import labels
from .estimates import PRUNING, RECOVERING, Estimate, estimate, levels, perplexities, suite, with_variant


@dataclass(frozen=True)
class Column:
    """A column of numbers. ``count`` is written as an integer with all digits."""

    name: str
    label: str
    kind: Literal["number", "count"] = "number"
    compared: bool = False
    """Whether the lowest number of a line, among the columns compared, is marked as the best."""


@dataclass(frozen=True)
class Table:
    """Lines of estimates under columns, told apart by the values of ``levels``."""

    name: str
    suite: str
    title: str
    levels: tuple[str, ...]
    columns: tuple[Column, ...]
    lines: list[tuple[tuple[Any, ...], tuple[Estimate | None, ...]]]
    constants: dict[str, Any] = field(default_factory=dict)
    """Levels with one value only: named in the title, and columns of the CSV alone."""


def perplexity(rows: DataFrame) -> Table:
    """Test perplexity: dense, not recovered, and after recovery with each window, by criterion and pattern.

    Raises:
        FreelunchError: no pruned run has a test perplexity.
    """
    found = perplexities(rows, "table perplexity")
    where = {name: {setting[found.levels.index(name)] for setting in found.settings} for name in ("dataset", "length")}
    constants = {name: next(iter(values)) for name, values in where.items() if len(values) == 1}
    kept = [place for place, name in enumerate(found.levels) if name not in constants]
    lines = [
        (tuple(setting[place] for place in kept), tuple(found.cells.get((setting, v)) for v in found.variants))
        for setting in found.settings
    ]
    columns = tuple(
        Column(variant, labels.value("variant", variant), compared=variant != "dense") for variant in found.variants
    )
    on = f" on {constants['dataset']}" if "dataset" in constants else ""
    of = f" of {constants['length']} tokens" if "length" in constants else ""
    title = f"Test perplexity{on} in non-overlapping windows{of}; lower is better."
    return Table(
        "perplexity", suite(rows), title, tuple(found.levels[place] for place in kept), columns, lines, constants
    )


def cost(rows: DataFrame) -> Table:
    """What pruning and recovering cost: time, peak memory, training tokens; and the sparsity that was reached.

    Raises:
        FreelunchError: there is no pruned run.
    """
    runs = with_variant(rows).drop_duplicates(["suite", "run"])
    runs = runs[runs["variant"] != "dense"]
    if runs.empty:
        raise FreelunchError(f"table cost needs pruned runs; suite {suite(rows)} has none")
    cell = ("model", "criterion", "pattern", "variant")
    chosen = levels(runs, cell)
    of_pruning, of_recovery = ([axis for axis in chosen if axis in axes] for axes in (PRUNING, RECOVERING))
    by = (*cell[:1], *of_pruning, *cell[1:], *of_recovery)
    columns = (
        Column("seconds", labels.axis("seconds")),
        Column("peak_gib", labels.axis("peak_gib")),
        Column("training_tokens", labels.axis("training_tokens"), "count"),
        Column("achieved_sparsity", labels.axis("achieved_sparsity")),
    )
    groups = {tuple(group[list(by)].iloc[0]): group for _, group in runs.groupby(list(by), dropna=False)}
    keys = sorted(groups, key=lambda key: [labels.order(*pair) for pair in zip(by, key, strict=True)])
    lines = [(key, tuple(_cost(groups[key], column.name) for column in columns)) for key in keys]
    title = "Cost of pruning and recovery per run, all windows together: time, peak memory and tokens trained on."
    return Table("cost", suite(rows), title, by, columns, lines)


def _cost(runs: DataFrame, name: str) -> Estimate | None:
    values = [float(value) for value in runs[name].dropna()]
    if not values:
        return None
    found = estimate(values)
    # what a setting prescribes does not scatter: "± 0" would only be noise
    return found if found.stderr else Estimate(found.value, math.nan, found.runs)


TABLES: dict[str, Callable[[DataFrame], Table]] = {"cost": cost, "perplexity": perplexity}
