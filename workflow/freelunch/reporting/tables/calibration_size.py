"""Perplexity by the number of sequences that pruning saw and recovery was trained on."""

from __future__ import annotations

from pandas import DataFrame

from freelunch.reporting.compared import table
from freelunch.reporting.studies import sizes
from freelunch.reporting.table import Table


def build(rows: DataFrame) -> Table:
    """Sequences of pruning and training together, or of training alone.

    Raises:
        FreelunchError: no runs differ in the number of sequences alone.
    """
    groups = sizes(rows, "table calibration_size")
    return table(
        "calibration_size", groups, "Calibration data", ("seconds", "peak_gib"), ("sequences", "training_sequences")
    )
