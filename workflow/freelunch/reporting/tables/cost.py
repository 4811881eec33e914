"""What pruning and recovering cost, and the sparsity that was reached."""

from __future__ import annotations

from pandas import DataFrame

from freelunch.errors import FreelunchError
from freelunch.reporting import labels
from freelunch.reporting.estimates import PRUNING, RECOVERING, levels, suite, summary, with_variant
from freelunch.reporting.table import Column, Table


def build(rows: DataFrame) -> Table:
    """Time, peak memory, tokens of training and of searching rates, and sparsity of every setting.

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
        Column("search_tokens", labels.axis("search_tokens"), "count"),
        Column("achieved_sparsity", labels.axis("achieved_sparsity")),
    )
    groups = {tuple(group[list(by)].iloc[0]): group for _, group in runs.groupby(list(by), dropna=False)}
    keys = sorted(groups, key=lambda key: [labels.order(*pair) for pair in zip(by, key, strict=True)])
    lines = [(key, tuple(summary(groups[key], column.name) for column in columns)) for key in keys]
    title = "Cost of pruning and recovery per run, all windows together: time, peak memory and tokens trained on."
    return Table("cost", suite(rows), title, by, columns, lines)
