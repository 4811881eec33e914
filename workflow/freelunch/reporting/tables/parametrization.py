"""Perplexity by parametrization, with its size, its cost and what merging it costs."""

from __future__ import annotations

from pandas import DataFrame

from freelunch.reporting.compared import table
from freelunch.reporting.studies import parametrizations
from freelunch.reporting.table import Table

_COLUMNS = ("trainable_parameters", "peak_gib", "seconds", "mismatch")


def build(rows: DataFrame) -> Table:
    """Which parameters are trained, and how; ``mismatch`` is 1 where merging is exact.

    Raises:
        FreelunchError: no runs differ in the parametrization alone.
    """
    groups = parametrizations(rows, "table parametrization")
    return table("parametrization", groups, "Parametrizations", _COLUMNS, ("window",))
