"""Published numbers beside those of a suite, where model, method, data, length and metric agree."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import pandas as pd
from pandas import DataFrame, Series

from freelunch.errors import FreelunchError
from freelunch.reporting import labels
from freelunch.reporting.estimates import suite, with_variant
from freelunch.reporting.tasks import METRICS

JOINED = ("model", "criterion", "pattern", "dataset", "length", "metric")


class Pairs(NamedTuple):
    """Attributes:

    joined: rows of the suite, once for each published number that agrees with them, which is in ``published``, with
        its ``source`` and how that model was recovered (``published_recovery``).
    without: rows of the suite that nothing was published for.
    """

    joined: DataFrame
    without: DataFrame


def pairs(rows: DataFrame, references: DataFrame, view: str) -> Pairs:
    """Join test perplexities and zero-shot accuracies of a suite with published numbers.

    Names agree if their letters and digits do, whatever their case: ``Llama-2-7b`` and ``llama_2_7b``. A model that is
    not recovered stands beside a published one that is not, and a recovered one beside recovered ones, however they
    were. Methods with another allocation than ``uniform``, or with a refinement, are left out: the published
    criteria have none.

    Raises:
        FreelunchError: no number of the suite has a published one.
    """
    ours = _comparable(rows)
    theirs = references.assign(published=references["value"], published_recovery=references["recovery"])
    keyed, other = _keyed(ours), _keyed(theirs)
    columns = ["source", "published", "published_recovery"]
    joined: Any = keyed.merge(other[[*_KEYS, *columns]], on=_KEYS, how="inner")
    if joined.empty:
        raise FreelunchError(
            f"{view} finds no published number for suite {suite(rows)}; "
            f"published: {_told(references)}; measured: {_told(ours)}"
        )
    without = keyed[~keyed["run"].isin(joined["run"])]
    return Pairs(DataFrame(joined.drop(columns=_KEYS)), without.drop(columns=_KEYS))


_KEYS = [f"key_{name}" for name in (*JOINED, "recovered")]


def _comparable(rows: DataFrame) -> DataFrame:
    perplexity = rows["metric"].str.startswith("ppl@", na=False) & (rows["split"] == "test")
    found = with_variant(rows[perplexity | rows["metric"].isin(METRICS)])
    plain = found["allocation"].fillna("uniform").eq("uniform") & found["refinement"].fillna("none").eq("none")
    found = found[plain | (found["criterion"] == "dense")]
    metric = found["metric"].mask(found["metric"].str.startswith("ppl@", na=False), "ppl")
    # the length of a task's prompts is not that of windows
    return found.assign(metric=metric, length=found["length"].mask(metric != "ppl"))


def _keyed(frame: DataFrame) -> DataFrame:
    keys = {f"key_{name}": _plain(frame[name]) for name in JOINED}
    recovered = frame["recovery"].fillna(labels.NOT_RECOVERED) != labels.NOT_RECOVERED
    return frame.assign(**keys, key_recovered=recovered)


def _plain(column: Series[Any]) -> Series[str]:
    """Letters, digits and what tells patterns apart, in lower case; empty where missing."""
    text = column.astype("object").where(column.notna(), "").map(str)
    return text.map(lambda value: re.sub(r"[^a-z0-9%:.]", "", value.lower()))


def _told(frame: DataFrame) -> str:
    """The models, with the data sets and lengths that they were measured on."""
    parts = []
    for model, found in frame.groupby("model", sort=True):
        places = found[["dataset", "length"]].drop_duplicates()
        told = [
            f"{data}" + ("" if pd.isna(length) else f" at {length}") for data, length in places.itertuples(index=False)
        ]
        parts.append(f"{model} ({', '.join(told[:3])}{', …' if len(told) > 3 else ''})")
    return ", ".join(parts) or "nothing"
