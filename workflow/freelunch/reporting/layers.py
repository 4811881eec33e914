"""What is known of every layer of a classifier, over its depth."""

from __future__ import annotations

from pandas import DataFrame

from freelunch.errors import FreelunchError
from freelunch.reporting.accuracies import classified
from freelunch.reporting.estimates import suite


def per_layer(rows: DataFrame, metric: str, view: str) -> DataFrame:
    """A metric of every layer or norm of pruned classifiers; its place in the network, from 1, is ``depth``.

    Raises:
        FreelunchError: no classifier was pruned.
    """
    found = classified(rows[(rows["metric"] == metric) & rows["backend"].notna()])
    if found.empty:
        raise FreelunchError(f"{view} needs pruned classifiers; suite {suite(rows)} has none")
    return found.assign(depth=found["step"].astype(int))
