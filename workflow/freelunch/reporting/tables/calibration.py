"""Perplexity by the data set that pruning and recovery were calibrated with."""

from __future__ import annotations

from pandas import DataFrame

from freelunch.reporting.compared import table
from freelunch.reporting.studies import calibrations
from freelunch.reporting.table import Table


def build(rows: DataFrame) -> Table:
    """Runs that differ in the calibration data alone; text of the same set as the calibration data is in distribution.

    Raises:
        FreelunchError: no runs differ in the calibration data alone.
    """
    return table(
        "calibration", calibrations(rows, "table calibration"), "Calibration data", levels=("window",), both=True
    )
