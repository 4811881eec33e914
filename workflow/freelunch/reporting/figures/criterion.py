"""Test perplexity by criterion, before and after recovery: how much the criterion matters."""

from __future__ import annotations

from matplotlib.figure import Figure
from pandas import DataFrame

from freelunch.reporting import categories, charts, claims, findings, style
from freelunch.reporting.comparisons import Group, rows_of, varying
from freelunch.reporting.gaps import spread
from freelunch.reporting.studies import criteria

_VIEW = "figure criterion"


@style.applied()
def draw(rows: DataFrame) -> Figure:
    """One mark per criterion, not recovered and after each recovery; panels are model and pattern.

    Raises:
        FreelunchError: no runs differ in the criterion alone.
    """
    groups = criteria(rows, _VIEW)
    return categories.draw(groups, _statement(groups), "Recovered")


def caption(rows: DataFrame) -> str:
    """The paper's claim, and how far apart criteria are before and after recovery."""
    return _statement(criteria(rows, _VIEW))


def selected(rows: DataFrame) -> DataFrame:
    """Perplexities of the runs that are compared."""
    return rows_of(criteria(rows, _VIEW), rows)


def _statement(groups: list[Group]) -> str:
    differing = varying(group.setting for group in groups)
    sentences = []
    for title, inside in charts.home(charts.panels(groups)):
        told = [f"{charts.named(group, differing, 'recovered')}: {_told(group)}" for group in inside]
        sentences.append((title, "; ".join(told)))
    return claims.statement(
        "criterion", "perplexity of the worst over the best criterion. " + findings.joined(sentences)
    )


def _told(group: Group) -> str:
    """``24.0 before (Magnitude 801 over Wanda 33.4), 1.05 after (Magnitude 31.5 over Wanda 30.0)``."""
    found = spread(group)
    if found is None:
        return "not both measured"
    before, after = found
    way = "smaller" if after.ratio < before.ratio else "not smaller"
    return f"{before.told()} before, {after.told()} after recovery ({way})"
