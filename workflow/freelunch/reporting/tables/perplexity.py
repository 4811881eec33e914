"""Perplexity: dense, not recovered, and after recovery with each window, by criterion and pattern."""

from __future__ import annotations

from pandas import DataFrame

from freelunch.reporting import labels
from freelunch.reporting.estimates import perplexities, suite
from freelunch.reporting.table import Column, Contest, Table


def build(rows: DataFrame) -> Table:
    """One column per way to recover; a level for every axis that differs.

    Raises:
        FreelunchError: no pruned run has a perplexity on held-out text.
    """
    found = perplexities(rows, "table perplexity")
    where = {name: {setting[found.levels.index(name)] for setting in found.settings} for name in ("dataset", "length")}
    constants = {name: next(iter(values)) for name, values in where.items() if len(values) == 1}
    kept = [place for place, name in enumerate(found.levels) if name not in constants]
    lines = [
        (tuple(setting[place] for place in kept), tuple(found.cells.get((setting, v)) for v in found.variants))
        for setting in found.settings
    ]
    columns = tuple(Column(variant, labels.value("variant", variant)) for variant in found.variants)
    compared = [place for place, variant in enumerate(found.variants) if variant != "dense"]
    contests = tuple(Contest(tuple((line, place) for place in compared)) for line in range(len(lines)))
    on = f" on {constants['dataset']}" if "dataset" in constants else ""
    of = f" of {constants['length']} tokens" if "length" in constants else ""
    title = f"{labels.perplexity(where['dataset'])}{on} in non-overlapping windows{of}; lower is better."
    levels = tuple(found.levels[place] for place in kept)
    return Table("perplexity", suite(rows), title, levels, columns, lines, constants, contests,
                 "the best of each row, the dense model aside")  # fmt: skip
