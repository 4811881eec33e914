"""How runs were made and measured, in one sentence: the end of every caption."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd
from pandas import DataFrame

from freelunch.reporting import labels
from freelunch.reporting.estimates import held_out, on_text, ordered

_MOST = 4
"""Values that are listed; more are counted."""


def protocol(rows: DataFrame) -> str:
    """Models, calibration data, training, measurements and seeds of some rows.

    ``Protocol: m (135M parameters); calibrated on wiki, 32 sequences of 256 tokens; trained for 1 epoch, learning rate
    auto; perplexity on test text of wiki in windows of 256 tokens; seeds 0, 1.``
    """
    about = (_models, _calibration, _training, _perplexity, _drift, _tasks, _accuracy, _seeds)
    parts = [told(rows) for told in about]
    return f"Protocol: {'; '.join(part for part in parts if part)}."


def _models(rows: DataFrame) -> str:
    known = rows[["model", "parameters", "trained_on"]].drop_duplicates().sort_values(["parameters", "model"])
    told = []
    for model, size, data in zip(*(known[name] for name in known), strict=True):
        about = [] if pd.isna(size) else [f"{labels.compact(float(size))} parameters"]
        # a small model of one's own is no published one, and says less about those
        about += [] if pd.isna(data) else [f"trained here from random weights on {data}"]
        told.append(f"{model} ({', '.join(about)})" if about else str(model))
    return _listed(told)


def _calibration(rows: DataFrame) -> str:
    runs = rows[rows["calibration"].notna()]
    if runs.empty:
        return ""
    length = (runs["calibration_tokens"] // runs["sequences"]).dropna().unique()
    tokens = f" of {_listed(sorted(length))} tokens" if len(length) else ""
    amount, images = _values(runs, "sequences"), _values(runs, "calibration_images")
    told = [f", {amount} sequences{tokens}" if amount else "", f", {images} images" if images else ""]
    return f"calibrated on {_values(runs, 'calibration')}" + "".join(told)


def _training(rows: DataFrame) -> str:
    runs = rows[rows["epochs"].notna() & rows["learning_rate"].notna()]
    if runs.empty:
        return ""
    epochs = _values(runs, "epochs")
    return f"trained for {epochs} epoch{'' if epochs == '1' else 's'}, learning rate {_values(runs, 'learning_rate')}"


def _perplexity(rows: DataFrame) -> str:
    found = held_out(on_text(rows))
    if found.empty:
        return ""
    splits = {split: found[found["split"] == split] for split in ("test", "validation")}
    told = [f"{split} text of {_values(inside, 'dataset')}" for split, inside in splits.items() if len(inside)]
    return f"perplexity on {' and '.join(told)} in windows of {_values(found, 'length')} tokens"


def _drift(rows: DataFrame) -> str:
    found = held_out(rows[rows["metric"].str.startswith("drift_", na=False)])
    if found.empty:
        return ""
    return f"drift on text of {_values(found, 'dataset')} in sequences of {_values(found, 'length')} tokens"


def _tasks(rows: DataFrame) -> str:
    count = rows[rows["metric"] == "chance"]["dataset"].nunique()
    return f"{count} zero-shot tasks" if count else ""


def _accuracy(rows: DataFrame) -> str:
    found = rows[(rows["metric"] == "accuracy") & (rows["split"] == "test")]
    return f"accuracy on test images of {_values(found, 'dataset')}" if len(found) else ""


def _seeds(rows: DataFrame) -> str:
    seeds = rows["seed"].dropna().unique()
    return f"seed{'s' if len(seeds) > 1 else ''} {_listed(sorted(seeds))}" if len(seeds) else ""


def _values(rows: DataFrame, axis: str) -> str:
    return _listed(labels.value(axis, value) for (value,) in ordered(rows.dropna(subset=[axis]), [axis]))


def _listed(values: Iterable[Any]) -> str:
    """``8, 32 or 128``; of many the first and the last."""
    found = [str(value) for value in values]
    if len(found) > _MOST:
        return f"{found[0]} to {found[-1]} ({len(found)} values)"
    return ", ".join(found)
