"""Perplexity by flow."""

from __future__ import annotations

from pandas import DataFrame

from freelunch.reporting.compared import table
from freelunch.reporting.studies import flows
from freelunch.reporting.table import Table


def build(rows: DataFrame) -> Table:
    """What windows are trained on, from which inputs to which targets.

    Raises:
        FreelunchError: no runs differ in the flow alone.
    """
    return table("flow", flows(rows, "table flow"), "Flows", ("seconds", "peak_gib"), ("window",))
