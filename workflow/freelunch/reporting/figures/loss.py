"""Test perplexity by loss: loss between the outputs of a window and of the dense one."""

from __future__ import annotations

from matplotlib.figure import Figure
from pandas import DataFrame

from freelunch.reporting import categories, claims, style
from freelunch.reporting.comparisons import Group, rows_of
from freelunch.reporting.studies import losses

_VIEW = "figure loss"


@style.applied()
def draw(rows: DataFrame) -> Figure:
    """One mark per loss and series of runs; panels are criterion and pattern.

    Raises:
        FreelunchError: no runs differ in the loss alone.
    """
    groups = losses(rows, _VIEW)
    return categories.draw(groups, _statement(groups), "Reconstruction")


def caption(rows: DataFrame) -> str:
    """The paper's claim and the perplexities found."""
    return _statement(losses(rows, _VIEW))


def selected(rows: DataFrame) -> DataFrame:
    """Perplexities of the runs that are compared."""
    return rows_of(losses(rows, _VIEW), rows)


def _statement(groups: list[Group]) -> str:
    return claims.statement("loss", categories.finding(groups))
