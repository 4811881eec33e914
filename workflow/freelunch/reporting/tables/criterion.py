"""Perplexity by criterion, before and after recovery."""

from __future__ import annotations

from pandas import DataFrame

from freelunch.reporting.compared import table
from freelunch.reporting.studies import criteria
from freelunch.reporting.table import Table


def build(rows: DataFrame) -> Table:
    """Every recovery of which there are two criteria, and the same runs before it; the best of both are bold.

    Raises:
        FreelunchError: no runs differ in the criterion alone.
    """
    return table("criterion", criteria(rows, "table criterion"), "Criteria", levels=("window",), both=True)
