"""Published numbers, ours, and their difference."""

from __future__ import annotations

import math
from typing import Any

from pandas import DataFrame

from freelunch.reporting import labels
from freelunch.reporting.comparisons import PRUNED
from freelunch.reporting.estimates import RECOVERING, Estimate, of, ordered, suite, summary
from freelunch.reporting.published import Pairs, pairs
from freelunch.reporting.references import references
from freelunch.reporting.table import Column, Line, Table

_VIEW = "table published"
_COLUMNS = (
    Column("published", "Published"),
    Column("ours", "Ours"),
    Column("difference", "Ours - published"),
)
_ALWAYS = ("source", "model", "dataset", "length", "measure", "criterion", "pattern", "variant")
_MOST = 8


def build(rows: DataFrame) -> Table:
    """One line per number that was published and measured; accuracies are fractions.

    Raises:
        FreelunchError: as ``published.pairs`` and ``references.references``.
    """
    found = _pairs(rows)
    joined = found.joined.rename(columns={"metric": "measure"})
    recovered = (joined["variant"] != labels.NOT_RECOVERED) & (joined["variant"] != "dense")
    extra = [axis for axis in (*PRUNED, *RECOVERING)
             if axis not in _ALWAYS and joined[axis].nunique() > 1]  # fmt: skip
    levels = (*_ALWAYS, *(["published_recovery"] if recovered.any() else []), *extra)
    lines: list[Line] = []
    for key in ordered(joined, levels):
        at = of(joined, levels, key)
        published, ours = float(at["published"].iloc[0]), summary(at)
        assert ours is not None
        difference = Estimate(ours.value - published, ours.stderr, ours.runs)
        lines.append((key, (Estimate(published, math.nan), ours, difference)))
    title = (
        "Published numbers (ppl: test perplexity; others: accuracy as a fraction) beside ours, where model, "
        "criterion, pattern, data, length and metric agree. Calibration data and seeds may differ."
    )
    return Table("published", suite(rows), title, levels, _COLUMNS, lines)


def caption(rows: DataFrame) -> str:
    """How far ours are from what was published, and what of ours has no published number."""
    found = _pairs(rows)
    ratios = _ratios(found.joined)
    said = f"Here: {len(ratios)} published numbers have one of ours beside them; ours over the published one is "
    said += f"{min(ratios):.3f} to {max(ratios):.3f}."
    told = list(dict.fromkeys(_name(row) for row in found.without.to_dict("records")))
    if not told:
        return f"{said} Every run has a published number."
    more = f" and {len(told) - _MOST} more" if len(told) > _MOST else ""
    return f"{said} Without a published number: {'; '.join(told[:_MOST])}{more}."


def _pairs(rows: DataFrame) -> Pairs:
    return pairs(rows, references(), _VIEW)


def _ratios(joined: DataFrame) -> list[float]:
    by = ["source", "model", "dataset", "length", "metric", "criterion", "pattern", "variant"]
    groups = joined.groupby(by, dropna=False, sort=False)
    return [float(group["value"].mean(skipna=False) / group["published"].iloc[0]) for _, group in groups]


def _name(row: dict[Any, Any]) -> str:
    told = [labels.value(axis, row[axis]) for axis in ("model", "criterion", "pattern", "variant")]
    return ", ".join(told[:2] if row["criterion"] == "dense" else told)
