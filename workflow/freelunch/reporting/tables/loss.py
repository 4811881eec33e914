"""Perplexity by loss of reconstruction."""

from __future__ import annotations

from pandas import DataFrame

from ..compared import table
from ..studies import losses
from ..table import Table


def build(rows: DataFrame) -> Table:
    """Losses between the outputs of a window.

    Raises:
        FreelunchError: no runs differ in the loss alone.
    """
    return table("loss", losses(rows, "table loss"), "Losses", ("seconds", "peak_gib"), ("window",))
