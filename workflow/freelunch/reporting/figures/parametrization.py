"""Test perplexity against the number of parameters that reconstruction trains."""

from __future__ import annotations

from matplotlib.figure import Figure
from pandas import DataFrame

from freelunch.reporting import claims, scatter, style
from freelunch.reporting.comparisons import Group, fullest, rows_of
from freelunch.reporting.studies import parametrizations

_VIEW = "figure parametrization"
_COLUMN = "trainable_parameters"


@style.applied()
def draw(rows: DataFrame) -> Figure:
    """One mark per parametrization; a panel per criterion and pattern, of the windows with most parametrizations.

    Raises:
        FreelunchError: no runs differ in the parametrization alone, or they do not say how many they train.
    """
    groups = _groups(rows)
    return scatter.draw(groups, _COLUMN, _looks, _statement(groups))


def caption(rows: DataFrame) -> str:
    """The paper's claim, and the perplexity and size of every parametrization."""
    return _statement(_groups(rows))


def selected(rows: DataFrame) -> DataFrame:
    """Perplexities of the runs that are compared."""
    return rows_of(_groups(rows), rows)


def _statement(groups: list[Group]) -> str:
    return claims.statement("parametrization", scatter.finding(groups, _COLUMN, " parameters"))


def _groups(rows: DataFrame) -> list[Group]:
    return scatter.having(fullest(parametrizations(rows, _VIEW)), _COLUMN, _VIEW)


def _looks(values: list[str]) -> dict[str, style.Look]:
    return {value: style.SERIES[place % len(style.SERIES)] for place, value in enumerate(values)}
