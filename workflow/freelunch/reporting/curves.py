"""Validation losses of reconstructed windows, relative to where each started."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from pandas import DataFrame

from freelunch.errors import FreelunchError
from freelunch.reporting.estimates import levels, suite, with_variant

_POSITION = re.compile(r"^(?P<first>\d+)(?:-(?P<last>\d+))?(?:\.(?:.*\.)?(?P<part>\w+))?$")
_RUN = ["suite", "run", "position"]


def curves(rows: DataFrame, view: str) -> tuple[DataFrame, tuple[str, ...]]:
    """Validation loss over its initial value: one row per setting, window and step, the mean over seeds in ``ratio``.

    Runs that are not reconstructed are left out: their losses are others. Besides the setting (criterion, pattern and
    the levels returned), columns ``part`` (attention, mlp, block, a number of blocks, model, key_up, or the matrix:
    ``k_proj``), ``first``, ``last`` (blocks), ``depth`` (middle of the window, in blocks) and ``step``.

    Raises:
        FreelunchError: there are no reconstructed runs, or their losses or the losses at step 0 are missing.
    """
    losses = _select(rows, "validation_loss", view)
    return _aggregate(_relative(losses, losses, view), extra=["step"])


def gains(rows: DataFrame, view: str) -> tuple[DataFrame, tuple[str, ...]]:
    """Best validation loss over its initial value, as ``curves`` but one row per setting and window.

    Raises:
        FreelunchError: as ``curves``.
    """
    losses, best = _select(rows, "validation_loss", view), _select(rows, "best_validation_loss", view)
    return _aggregate(_relative(best, losses, view), extra=[])


def _select(rows: DataFrame, metric: str, view: str) -> DataFrame:
    runs = rows[rows["recovery"] == "reconstruct"]
    if runs.empty:
        raise FreelunchError(f"{view} needs reconstructed runs; suite {suite(rows)} has none")
    found = runs[runs["metric"] == metric]
    if found.empty:
        raise FreelunchError(f"{view} needs the metric {metric}; the runs of suite {suite(rows)} do not have it")
    return found


def _relative(losses: DataFrame, curve: DataFrame, view: str) -> DataFrame:
    start = curve[curve["step"] == 0].set_index(_RUN)["value"]
    if start.empty:
        raise FreelunchError(f"{view} needs validation losses at step 0; suite {suite(curve)} has none")
    initial = losses[_RUN].join(start.rename("initial"), on=_RUN)["initial"].to_numpy(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = losses["value"].to_numpy(float) / initial
    # a window that started at zero had nothing to gain: no ratio describes it
    ratio[initial == 0] = np.nan
    return losses.assign(ratio=ratio)


def _aggregate(losses: DataFrame, extra: Sequence[str]) -> tuple[DataFrame, tuple[str, ...]]:
    losses = with_variant(losses)
    chosen = levels(losses, ("model", "criterion", "pattern", "variant"))
    shown = (*(["model"] if losses["model"].nunique() > 1 else []), *chosen)
    places = DataFrame([_place(*pair) for pair in zip(losses["position"], losses["variant"], strict=True)])
    losses = losses.reset_index(drop=True).join(places)
    by = ["criterion", "pattern", *shown, "variant", "position", *places.columns, *extra]
    # a diverged seed makes the mean diverge; skipping it would flatter the rest
    mean = losses.groupby(by, dropna=False, sort=True)["ratio"].agg(lambda values: values.mean(skipna=False))
    return mean.reset_index(), shown


def _place(position: str, variant: str) -> dict[str, Any]:
    if position == "model":
        return {"part": variant, "first": 0, "last": 0, "depth": 0.0}
    match = _POSITION.match(position)
    if match is None:
        raise FreelunchError(f"position {position!r} is not a window; expected the like of 7, 7.attention, 7.mlp, 7-9, "
                             "7.self_attn.k_proj")  # fmt: skip
    first, last = int(match["first"]), int(match["last"] or match["first"])
    return {"part": match["part"] or variant, "first": first, "last": last, "depth": (first + last) / 2}
