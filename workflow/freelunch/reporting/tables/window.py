"""Perplexity by window, with norms and biases trained or not, and what it cost."""

from __future__ import annotations

from pandas import DataFrame

from freelunch.reporting.compared import table
from freelunch.reporting.studies import windows
from freelunch.reporting.table import Table


def build(rows: DataFrame) -> Table:
    """Windows of matrices (also in closed form, and as the official code trains them) up to the model.

    Raises:
        FreelunchError: no runs differ in the window alone.
    """
    groups = windows(rows, "table window")
    return table("window", groups, "Windows", ("seconds", "peak_gib"), ("parametrization",))
