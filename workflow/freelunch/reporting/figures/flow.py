"""Test perplexity by flow: what windows are trained on, from which inputs to which targets."""

from __future__ import annotations

from matplotlib.figure import Figure
from pandas import DataFrame

from freelunch.reporting import categories, claims, style
from freelunch.reporting.comparisons import Group, rows_of
from freelunch.reporting.studies import flows

_VIEW = "figure flow"


@style.applied()
def draw(rows: DataFrame) -> Figure:
    """One mark per flow and series of runs; panels are criterion and pattern.

    Raises:
        FreelunchError: no runs differ in the flow alone.
    """
    groups = flows(rows, _VIEW)
    return categories.draw(groups, _statement(groups), "Reconstruction")


def caption(rows: DataFrame) -> str:
    """The paper's claim and the perplexities found."""
    return _statement(flows(rows, _VIEW))


def selected(rows: DataFrame) -> DataFrame:
    """Perplexities of the runs that are compared."""
    return rows_of(flows(rows, _VIEW), rows)


def _statement(groups: list[Group]) -> str:
    return claims.statement("flow", categories.finding(groups))
