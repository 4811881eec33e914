"""How far the output of every block is from the dense model's: of the block alone, and with all before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from pandas import DataFrame

from ..errors import FreelunchError
from . import labels
from .comparisons import PRUNED, best
from .estimates import suite, with_variant
from .studies import REPLICA

LOCAL, ACCUMULATED = "drift_local", "drift_accumulated"
SERIES = ("variant", "loss", "repair")
"""What tells the lines of a panel apart."""
PANEL = ("model", "dataset", "length", *PRUNED)


def drifts(rows: DataFrame, view: str) -> DataFrame:
    """Drift by panel, series, metric and ``block``: the mean over seeds in ``value``.

    Of the ways to recover there is one line for each window, for each loss of retraining, and for each repair; among
    runs that differ in other settings the lowest validation perplexity chooses. ``loss`` is that of retraining alone.

    Raises:
        FreelunchError: no pruned run has a drift, or there are no validation perplexities to choose by.
    """
    found = rows[rows["metric"].isin([LOCAL, ACCUMULATED]) & (rows["criterion"] != "dense")]
    if found.empty:
        raise FreelunchError(f"{view} needs the drift of pruned runs; suite {suite(rows)} has none")
    # one split: the held-out one if there is
    found = found[found["split"] == ("test" if "test" in set(found["split"]) else found["split"].iloc[0])]
    found = with_variant(found.assign(window=found["window"].mask(found["flow"] == REPLICA, REPLICA)))
    cell = [*PANEL, "variant", "kind", "repair"]
    found = best(found.assign(kind=_loss(found)), cell, rows, view)
    found = found.assign(loss=_loss(found), block=pd.to_numeric(found["position"]).astype(int))
    by = [*PANEL, *SERIES, "metric", "block"]
    # a diverged seed makes the mean diverge
    mean = found.groupby(by, dropna=False, sort=False)["value"].agg(lambda values: values.mean(skipna=False))
    place = found.groupby(by, dropna=False, sort=False)["calibration"].first()
    return DataFrame({"value": mean, "home": place}).reset_index()


def name(values: Sequence[Any]) -> str:
    """What a series is called: ``Attention / MLP``, ``Retraining, KL``."""
    variant, loss, repair = values
    told = [labels.value("variant", variant)]
    told += [labels.value(axis, value) for axis, value in (("loss", loss), ("repair", repair)) if not pd.isna(value)]
    return ", ".join(told)


def _loss(runs: DataFrame) -> pd.Series[str]:
    return runs["loss"].where(runs["recovery"] == "retrain")
