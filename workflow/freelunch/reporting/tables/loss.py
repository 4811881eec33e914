"""Perplexity by loss of reconstruction."""

from __future__ import annotations

from pandas import DataFrame

from freelunch.reporting.compared import table
from freelunch.reporting.studies import losses
from freelunch.reporting.table import Table


def build(rows: DataFrame) -> Table:
    """Losses between the outputs of a window.

    Raises:
        FreelunchError: no runs differ in the loss alone.
    """
    return table("loss", losses(rows, "table loss"), "Losses", ("seconds", "peak_gib"), ("window",))
