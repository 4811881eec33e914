"""What is measured beside perplexity: drift over depth, losses of windows, zero-shot accuracy, published numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas import DataFrame, Series

from freelunch.errors import FreelunchError
from freelunch.report import text
from freelunch.report.compare import (
    EXACT,
    PRUNED,
    RECOVERING,
    REPLICA,
    Estimate,
    Setting,
    aligned,
    among,
    best,
    estimate,
    held_out,
    lacking,
    levels,
    parts,
    preferred,
    recovered,
    suite,
    with_variant,
)
from freelunch.report.studies import PREFERRED
from freelunch.report.views import REFERENCES

# --- drift -----------------------------------------------------------------------------------------------------------


LOCAL, ACCUMULATED = "drift_local", "drift_accumulated"
LINES = ("variant", "flow", "loss", "repair")
"""What tells the lines of a panel of drifts apart."""
PANEL = ("model", "dataset", "length", *PRUNED)
_FIXED: dict[str, tuple[str, ...]] = {
    "flow": PREFERRED["flow"],
    "loss": PREFERRED["loss"],
    "targets": ("all",),
    "parametrization": ("full + biases + norms",),
}
"""What reconstructions have in common: the first of these values that there is, or else the first that there is."""


def drifts(rows: DataFrame, view: str) -> DataFrame:
    """Drift by panel, line, metric and ``block``: mean over seeds, its error and their number (``Estimate``).

    Of the ways to recover there is one line for each window, for each loss of retraining, and for each repair.
    Reconstructions have one flow, loss, parametrization and the same targets (named in ``fixed``): dense, mean squared
    error and all, if there are such runs; the other flows of the window that the paper recommends are lines of their
    own. Runs trained on more or fewer sequences than pruning saw are left out where there are others. Among runs that
    differ in other settings the lowest validation perplexity chooses. All lines of a panel are of the same seeds.
    ``loss`` is that of retraining alone, ``flow`` that of lines of other flows.

    Raises:
        FreelunchError: no pruned run has a drift on held-out text, or no validation perplexity to choose by.
    """
    runs = held_out(rows[rows["metric"].isin([LOCAL, ACCUMULATED]) & (rows["criterion"] != "dense")])
    if runs.empty:
        raise lacking(view, "the drift of pruned runs on held-out text", rows)
    replica = runs["flow"] == REPLICA
    runs = with_variant(
        runs.assign(window=runs["window"].mask(replica, REPLICA), flow=runs["flow"].mask(replica, "dense"))
    )
    same = runs["training_sequences"].fillna(runs["sequences"]).eq(runs["sequences"]).fillna(True).astype(bool)
    runs = runs[same | ~runs["recovery"].isin(set(runs.loc[same, "recovery"]))]
    runs = pd.concat([_controlled(panel) for _, panel in runs.groupby(list(PANEL), dropna=False, sort=False)])
    runs = runs.assign(loss_=runs["loss"].where(runs["recovery"] == "retrain"))
    lines = ["variant", "other", "loss_", "repair"]
    runs = best(runs, [*PANEL, *lines], rows, view)
    runs = pd.concat([_same_seeds(panel, lines) for _, panel in runs.groupby(list(PANEL), dropna=False, sort=False)])
    runs = runs.assign(loss=runs["loss_"], flow=runs["other"], block=pd.to_numeric(runs["position"]).astype(int))
    groups = runs.groupby([*PANEL, *LINES, "metric", "block"], dropna=False, sort=False)
    fixed = groups["fixed"].first()
    means = [estimate(list(group["value"])) for _, group in groups]
    return DataFrame(means, columns=list(Estimate._fields), index=fixed.index).assign(fixed=fixed).reset_index()


def _controlled(panel: DataFrame) -> DataFrame:
    """A panel with its reconstructions in one setting; the flow of those with another is in ``other``."""
    local = base = recovered(panel, "reconstruct")
    held: dict[str, str | None] = {}
    for axis, wanted in _FIXED.items():
        held[axis] = preferred(base[base["window"] != EXACT], axis, wanted)
        base = base[_has(base, axis, held[axis])]
    window = preferred(base, "window", PREFERRED["window"])
    beside = local[(local["window"] == window) & (local["flow"] != held["flow"])]
    for axis in (axis for axis in _FIXED if axis != "flow"):
        beside = beside[_has(beside, axis, held[axis])]
    rest = panel[panel["recovery"] != "reconstruct"]
    kept = pd.concat([rest.assign(other=None), base.assign(other=None), beside.assign(other=beside["flow"])])
    named = [f"{text.axis(axis).lower()} {text.value(axis, value)}" for axis, value in held.items() if value]
    return kept.assign(other=kept["other"].astype("str"), fixed=", ".join(named))


def _has(runs: DataFrame, axis: str, value: Any) -> Series[bool]:
    """Which runs have a value of an axis; least squares is solved for whatever is trained beside the weights."""
    has: Series[bool] = runs[axis] == value
    if value is None or axis == "loss":
        has |= runs["window"] == EXACT
    elif axis == "parametrization":
        has |= (runs["window"] == EXACT) & (runs[axis].map(lambda each: parts(each)[0]) == parts(value)[0])
    return has


def _same_seeds(panel: DataFrame, lines: Sequence[str]) -> DataFrame:
    """The lines of a panel at the seeds that all of them have; what is not recovered follows the others."""
    lone = panel["recovery"] == text.NOT_RECOVERED
    if lone.all():
        return panel
    kept = aligned(panel[~lone], lines)
    return pd.concat([kept, among(panel[lone], kept)])


# --- losses of windows -----------------------------------------------------------------------------------------------


_POSITION = re.compile(r"^(?P<first>\d+)(?:-(?P<last>\d+))?(?:\.(?:.*\.)?(?P<part>\w+))?$")


def curves(rows: DataFrame, view: str, metric: str = "validation_loss") -> tuple[DataFrame, tuple[str, ...]]:
    """Losses of reconstructed windows over those before training: by setting, window and step, means over seeds.

    With metric ``best_validation_loss`` one row per setting and window. Besides the setting (criterion, pattern and the
    levels returned), columns ``part`` (attention, mlp, block, a number of blocks, model, key_up, or the matrix:
    ``k_proj``), ``first``, ``last`` (blocks), ``depth`` (middle of the window, in blocks), ``step`` and ``ratio``.

    Raises:
        FreelunchError: there are no reconstructed runs, or their losses or the losses at step 0 are missing.
    """
    runs = recovered(rows, "reconstruct")
    if runs.empty:
        raise lacking(view, "reconstructed runs", rows)
    losses, place = runs[runs["metric"] == metric], ["suite", "run", "position"]
    if losses.empty:
        raise FreelunchError(f"{view} needs the metric {metric}; the runs of suite {suite(rows)} do not have it")
    start = runs[(runs["metric"] == "validation_loss") & (runs["step"] == 0)].set_index(place)["value"]
    if start.empty:
        raise lacking(view, "validation losses at step 0", rows)
    initial = losses[place].join(start.rename("initial"), on=place)["initial"].to_numpy(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        # a window that started at zero had nothing to gain: no ratio describes it
        ratio = np.where(initial == 0, np.nan, losses["value"].to_numpy(float) / initial)
    losses = with_variant(losses.assign(ratio=ratio)).reset_index(drop=True)
    told = levels(losses, ("model", "criterion", "pattern", "variant"))
    shown = tuple(axis for axis in told if axis not in ("criterion", "pattern", "variant"))
    places = [window_of(*pair) for pair in zip(losses["position"], losses["variant"], strict=True)]
    losses = losses.join(DataFrame(places))
    by = [
        "criterion",
        "pattern",
        *shown,
        "variant",
        "position",
        *places[0],
        *(["step"] if metric == "validation_loss" else []),
    ]
    # a diverged seed makes the mean diverge; skipping it would flatter the rest
    mean = losses.groupby(by, dropna=False, sort=True)["ratio"].agg(lambda values: values.mean(skipna=False))
    return mean.reset_index(), shown


def window_of(position: str, variant: str) -> Setting:
    """The part, blocks and depth of a window, by its name such as 7, 7.attention, 7-9, 7.self_attn.k_proj or model.

    Raises:
        FreelunchError: it is no window.
    """
    if position == "model":
        return {"part": variant, "first": 0, "last": 0, "depth": 0.0}
    match = _POSITION.match(position)
    if match is None:
        raise FreelunchError(f"position {position!r} is not a window; expected the like of 7, 7.attention, 7.mlp, 7-9, "
                             "7.self_attn.k_proj")  # fmt: skip
    first, last = int(match["first"]), int(match["last"] or match["first"])
    return {"part": match["part"] or variant, "first": first, "last": last, "depth": (first + last) / 2}


# --- zero-shot accuracy ----------------------------------------------------------------------------------------------


METRICS = ("acc", "acc_norm", "exact_match", "pass@1")
"""The accuracies that tasks have; the first that a task has goes by the task's name alone."""
MEAN, CHANCE = "acc_mean", "chance"


class Kind(NamedTuple):
    """What an accuracy is of; ``way`` is how answers are read, where the task does that in several ways."""

    task: str
    metric: str
    way: str | None


class Scores(NamedTuple):
    """Accuracies in percent.

    Attributes:
        kinds: what there is, by name: ``hellaswag``, ``hellaswag_acc_norm``; in the order of tasks.
        rows: one per run and kind, its name in ``task`` and the accuracy in ``value``; the mean is ``acc_mean``.
        chance: what guessing gives, by the same names, as far as it is known.
    """

    kinds: dict[str, Kind]
    rows: DataFrame
    chance: dict[str, float]


def scores(rows: DataFrame, view: str) -> Scores:
    """The accuracies of all runs; those that were pruned alike are of the same seeds.

    Raises:
        FreelunchError: no pruned run was evaluated on a task.
    """
    runs = rows[rows["metric"].isin([*METRICS, MEAN])]
    if runs[runs["criterion"] != "dense"].empty:
        raise lacking(view, "zero-shot accuracies of pruned runs", rows)
    columns = zip(runs["dataset"], runs["metric"], runs["position"], strict=True)
    each = [Kind(str(task), str(metric), None if pd.isna(way) else str(way)) for task, metric, way in columns]
    kinds = sorted({kind for kind in each if kind.metric != MEAN},
                   key=lambda kind: (kind.task, METRICS.index(kind.metric), kind.way or ""))  # fmt: skip
    first: dict[str, str] = {}
    for kind in kinds:
        first.setdefault(kind.task, kind.metric)
    names = {kind: "_".join([kind.task, *([] if kind.metric == first[kind.task] else [kind.metric]),
                             *([kind.way] if kind.way else [])]) for kind in kinds}  # fmt: skip
    runs = with_variant(runs).assign(task=[names.get(kind, MEAN) for kind in each], value=100 * runs["value"],
                                     stderr=100 * runs["stderr"])  # fmt: skip
    dense = runs["criterion"] == "dense"
    pruned = runs[~dense].groupby(["model", *PRUNED], dropna=False, sort=False)
    runs = pd.concat([runs[dense], *(aligned(group, ["variant", *RECOVERING]) for _, group in pruned)])
    guesses = rows[rows["metric"] == CHANCE].drop_duplicates("dataset").set_index("dataset")["value"]
    # who guesses is as often right however the log-likelihoods of answers are compared
    chance = {name: 100 * float(guesses[kind.task]) for kind, name in names.items() if kind.task in guesses.index}
    averaged = [chance.get(name, math.nan) for kind, name in names.items() if kind.metric == "acc"]
    if averaged and not any(map(math.isnan, averaged)):
        chance[MEAN] = float(np.mean(averaged))
    return Scores({name: kind for kind, name in names.items()}, runs, chance)


# --- published numbers -----------------------------------------------------------------------------------------------


COLUMNS = ("source", "model", "criterion", "pattern", "recovery", "dataset", "length", "metric", "value")
"""``metric`` is ``ppl``, or that of a task as a fraction; ``length`` is empty for tasks."""
_JOINED = ("model", "criterion", "pattern", "dataset", "length", "metric")


@cache
def references(folder: Path = REFERENCES) -> DataFrame:
    """All published numbers, one file per source; what is empty is missing.

    Raises:
        FreelunchError: a file has other columns, a value or length that is no number, or a row without a source.
    """
    frames = []
    for path in sorted(folder.glob("*.csv")):
        frame = pd.read_csv(path, dtype="str", keep_default_na=False, na_values=[""])
        if tuple(frame.columns) != COLUMNS:
            raise FreelunchError(f"{path}: its columns are not {', '.join(COLUMNS)}")
        if frame[["source", "model", "metric", "value"]].isna().any(axis=None):
            raise FreelunchError(f"{path}: a row lacks its source, model, metric or value")
        try:
            frames.append(frame.astype({"value": "float64", "length": "float64"}).astype({"length": "Int64"}))
        except ValueError as error:
            raise FreelunchError(f"{path}: {error}") from None
    if not frames:
        raise FreelunchError(f"{folder}: there are no published numbers (*.csv)")
    return pd.concat(frames, ignore_index=True)


def published(rows: DataFrame, theirs: DataFrame, view: str) -> DataFrame:
    """Rows of a suite, once for each published number that agrees with them.

    That is in ``published``, with its ``source`` and how that model was recovered (``published_recovery``). Names agree
    if their letters and digits do, whatever their case: ``Llama-2-7b`` and ``llama_2_7b``. A model that is not
    recovered stands beside a published one that is not, and a recovered one beside recovered ones, however they were.
    Methods with another allocation than ``uniform``, or a refinement, are left out: the published criteria have none.

    Raises:
        FreelunchError: no number of the suite has a published one.
    """
    perplexity = rows["metric"].str.startswith("ppl@", na=False)
    ours = with_variant(rows[(perplexity & (rows["split"] == "test")) | rows["metric"].isin(METRICS)])
    plain = ours["allocation"].fillna("uniform").eq("uniform") & ours["refinement"].fillna("none").eq("none")
    ours = ours[plain | (ours["criterion"] == "dense")]
    metric = ours["metric"].mask(ours["metric"].str.startswith("ppl@", na=False), "ppl")
    # the length of a task's prompts is not that of windows
    ours = ours.assign(metric=metric, length=ours["length"].mask(metric != "ppl"))
    theirs = theirs.assign(published=theirs["value"], published_recovery=theirs["recovery"])
    keys = [f"key_{name}" for name in (*_JOINED, "recovered")]
    columns = [*keys, "source", "published", "published_recovery"]
    joined: Any = _keyed(ours).merge(_keyed(theirs)[columns], on=keys, how="inner").drop(columns=keys)
    if joined.empty:
        raise FreelunchError(f"{view} finds no published number for suite {suite(rows)}; "
                             f"published: {_described(theirs)}; measured: {_described(ours)}")  # fmt: skip
    return DataFrame(joined)


def _keyed(frame: DataFrame) -> DataFrame:
    def plain(column: Series[Any]) -> Series[str]:
        """Letters, digits and what tells patterns apart, in lower case; empty where missing."""
        words = column.astype("object").where(column.notna(), "").map(str)
        return words.map(lambda value: re.sub(r"[^a-z0-9%:.]", "", value.lower()))

    keys = {f"key_{name}": plain(frame[name]) for name in _JOINED}
    return frame.assign(**keys, key_recovered=frame["recovery"].fillna(text.NOT_RECOVERED) != text.NOT_RECOVERED)


def _described(frame: DataFrame) -> str:
    """The models, with the data sets and lengths that they were measured on."""
    found = []
    for model, group in frame.groupby("model", sort=True):
        places = group[["dataset", "length"]].drop_duplicates().itertuples(index=False)
        at = [f"{data}" + ("" if pd.isna(length) else f" at {length}") for data, length in places]
        found.append(f"{model} ({', '.join(at[:3])}{', …' if len(at) > 3 else ''})")
    return ", ".join(found) or "nothing"
