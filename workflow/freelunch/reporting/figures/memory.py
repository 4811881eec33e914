"""Test perplexity against the peak memory of reconstruction, by window."""

from __future__ import annotations

from dataclasses import replace

from matplotlib.figure import Figure
from pandas import DataFrame

from freelunch.reporting import claims, scatter, style
from freelunch.reporting.comparisons import Group, rows_of
from freelunch.reporting.studies import windows

_VIEW = "figure memory"
_COLUMN = "peak_gib"
_TRAINED = ("biases + norms", "norms", "biases", "only", "frozen")
"""Of a window with several parametrizations of norms and biases, the first of these is drawn."""


@style.applied()
def draw(rows: DataFrame) -> Figure:
    """One mark per window; a panel per criterion, pattern and whatever else differs.

    Raises:
        FreelunchError: no runs differ in the window alone, or they do not say what memory they took.
    """
    groups = _groups(rows)
    return scatter.draw(groups, _COLUMN, style.looks, _statement(groups))


def caption(rows: DataFrame) -> str:
    """The paper's claim, and the perplexity and memory of every window."""
    return _statement(_groups(rows))


def selected(rows: DataFrame) -> DataFrame:
    """Perplexities of the runs that are compared."""
    return rows_of(_groups(rows), rows)


def _statement(groups: list[Group]) -> str:
    return claims.statement("memory", scatter.finding(groups, _COLUMN, " GiB"))


def _groups(rows: DataFrame) -> list[Group]:
    found = []
    for group in windows(rows, _VIEW):
        rank = group.runs["extras"].map({name: place for place, name in enumerate(_TRAINED)})
        first = rank == rank.groupby(group.runs["window"]).transform("min")
        found.append(replace(group, runs=group.runs[first]))
    return scatter.having(found, _COLUMN, _VIEW)
