"""Test perplexity by the data set that pruning and recovery were calibrated with."""

from __future__ import annotations

from matplotlib.figure import Figure
from pandas import DataFrame

from freelunch.reporting import categories, claims, style
from freelunch.reporting.comparisons import Group, rows_of
from freelunch.reporting.studies import calibrations

_VIEW = "figure calibration"


@style.applied()
def draw(rows: DataFrame) -> Figure:
    """One mark per data set, not recovered and after each recovery; panels are what was measured on, and pruning.

    Raises:
        FreelunchError: no runs differ in the calibration data alone.
    """
    groups = calibrations(rows, _VIEW)
    return categories.draw(groups, _statement(groups), "Recovered")


def caption(rows: DataFrame) -> str:
    """What the paper does, and the perplexities by data set."""
    return _statement(calibrations(rows, _VIEW))


def selected(rows: DataFrame) -> DataFrame:
    """Perplexities of the runs that are compared."""
    return rows_of(calibrations(rows, _VIEW), rows)


def _statement(groups: list[Group]) -> str:
    return claims.statement("calibration", categories.finding(groups))
