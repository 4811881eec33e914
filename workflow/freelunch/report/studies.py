"""Comparisons of more than one axis, and what is measured beside perplexity: drift, losses of windows, accuracies."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas import DataFrame, Series

from freelunch.errors import FreelunchError
from freelunch.report import compare, text
from freelunch.report.compare import EXACT, PRUNED, RECOVERING, REPLICA, WHERE, Estimate, Group, Setting, estimate

AUTO = "auto"
SERIES = ("recovery", "loss", "parametrization", "window", "targets", "repair")
"""What tells the lines of a race apart."""
PREFERRED: dict[str, tuple[str, ...]] = {"window": ("attention_mlp", "block"), "flow": ("dense",), "loss": ("mse",)}
"""Reconstruction as the paper recommends it, where a suite has others too."""


# --- learning rates and retraining -----------------------------------------------------------------------------------


class Rate(NamedTuple):
    """One setting of a sweep: perplexities are means over seeds, seconds and runs add up over them."""

    learning_rate: str
    epochs: int
    validation: Estimate
    test: Estimate
    seconds: float
    runs: int


class Choice(NamedTuple):
    """A setting that was selected, by what, and what it took to find and train it."""

    by: str
    rate: Rate
    seconds: float
    runs: int


@dataclass(frozen=True)
class Sweep:
    """Runs that are equal but for learning rate and epochs; ``auto`` are those that search their own rate."""

    group: Group
    rates: list[Rate]
    auto: list[Rate]

    def choices(self) -> list[Choice]:
        """By validation and by test perplexity, each at the cost of the sweep; of the searches, at the cost of all
        lengths that were tried, the one that the validation perplexity selects."""
        tried = [("validation", self.rates), ("test", self.rates), *([(AUTO, self.auto)] if self.auto else [])]
        choices = []
        for by, rates in tried:
            values = [(rate.test if by == "test" else rate.validation).value for rate in rates]
            cost = sum(rate.seconds for rate in rates), sum(rate.runs for rate in rates)
            choices.append(Choice(by, rates[compare.lowest(values)], *cost))
        return choices


def sweeps(rows: DataFrame, view: str) -> list[Sweep]:
    """All sweeps of at least two learning rates; the validation perplexity is that on the calibration data.

    Raises:
        FreelunchError: there is no such sweep, or no validation perplexity to select by.
    """
    every = []
    for group in compare.along(compare.measured(rows, view), "learning_rate", ("epochs",)):
        runs = group.runs.assign(validation=group.runs["run"].map(compare.validated(group.runs, rows, view)))
        rates = [
            Rate(str(setting["learning_rate"]), int(setting["epochs"]), estimate(list(at["validation"])),
                 estimate(list(at["value"]), list(at["stderr"])), float(at["seconds"].sum()), len(at))
            for setting, at in compare.split(runs, ["learning_rate", "epochs"])
        ]  # fmt: skip
        swept = [rate for rate in rates if rate.learning_rate != AUTO]
        if len({rate.learning_rate for rate in swept}) > 1:
            every.append(Sweep(group, swept, [rate for rate in rates if rate.learning_rate == AUTO]))
    if not every:
        raise compare.lacking(view, "recovered runs that differ in learning rate alone", rows)
    return every


def races(rows: DataFrame, view: str) -> list[Group]:
    """For each way to prune: reconstruction and retraining along the training tokens; repairs train on none.

    Reconstruction is that of one window, flow and loss (:data:`PREFERRED`, if there are such runs), with the
    parametrizations that retraining has, if some are common. Among runs that differ in other settings alone the lowest
    validation perplexity chooses. All are of the same seeds. Runs also have ``operations``, missing where the size of
    the model is not known: 6 per parameter and token (two forward, four backward), also for the tokens of searches.
    Windows tile the network, so what they train on together is one pass over the model for every token.

    Raises:
        FreelunchError: there are no retrained runs beside reconstructed ones that were pruned alike, or no validation
            perplexities to choose by.
    """
    runs = compare.measured(rows, view)
    dense = runs[runs["criterion"] == "dense"]
    groups = []
    for setting, group in compare.split(runs[runs["criterion"] != "dense"], [*WHERE, *PRUNED]):
        retrained, local = compare.recovered(group, "retrain"), compare.recovered(group, "reconstruct")
        for axis, wanted in PREFERRED.items():
            chosen = compare.preferred(local, axis, wanted)
            local = local if chosen is None else local[local[axis] == chosen]
        if retrained.empty or local.empty:
            continue
        common = local["parametrization"].isin(retrained["parametrization"])
        trained = pd.concat([local[common] if common.any() else local, retrained])
        # tokens it was given: those it took are fewer where it stopped early, which a seed decides
        length = trained["calibration_tokens"] // trained["sequences"]
        given = (trained["epochs"] * trained["training_sequences"] * length).fillna(trained["training_tokens"])
        cell = ["dataset", "length", *SERIES, "flow", "budget"]
        trained = compare.best(trained.assign(budget=given), cell, rows, view)
        repaired = compare.recovered(group, "repair").assign(training_tokens=0, search_tokens=0, budget=0)
        every = compare.aligned(pd.concat([repaired, trained]), [*SERIES, "budget"])
        if not {"reconstruct", "retrain"} <= set(every["recovery"]):
            continue
        tokens, searched, size = (
            every[name].astype("float64") for name in ("training_tokens", "search_tokens", "parameters")
        )
        every = every.assign(tokens=tokens, operations=6 * size * (tokens + searched.fillna(0)))
        means = every.groupby([*SERIES, "budget"], dropna=False, sort=False)[["tokens", "operations"]].transform("mean")
        whole = means["tokens"].round().astype("Int64").astype(object).where(means["tokens"].notna(), math.nan)
        every = every.assign(operations=means["operations"], training_tokens=whole)
        alone = group[group["recovery"] == text.NOT_RECOVERED].assign(training_tokens=0, operations=0.0)
        measured_there = compare.of(dense, {name: setting[name] for name in WHERE})
        groups.append(Group("training_tokens", setting, every, compare.among(alone, every), measured_there))
    if not groups:
        raise compare.lacking(view, "reconstructed and retrained runs that were pruned alike", rows)
    return groups


def runners(group: Group) -> list[tuple[Setting, DataFrame]]:
    """The lines of a race in reading order, each with what it is and its runs."""
    return compare.split(group.runs, SERIES)


# --- criteria by size of model ---------------------------------------------------------------------------------------


SIDES = ("before", "after")
ALIKE = ("family", *compare.AXES, "calibration_length", "criteria")
"""Axes of models that are compared by size, in reading order."""


class Sizes(NamedTuple):
    """Groups along the criterion that differ in the model alone, and the criteria that all of them have.

    ``setting`` are the axes that they share (see :data:`ALIKE`): ``family`` is None where models have none,
    ``calibration_length`` stands for ``calibration_tokens``, and ``criteria`` are those compared, in words.
    """

    setting: Setting
    groups: list[Group]
    criteria: list[str]

    @property
    def better(self) -> bool:
        """Whether no dense model, in the order of the groups, has a higher perplexity than the one before."""
        dense = [mean.value for mean in (compare.summary(group.dense) for group in self.groups) if mean is not None]
        return all(later <= earlier for earlier, later in pairwise(dense))

    def gaps(self, group: Group) -> dict[str, dict[str, Estimate]]:
        """By side (``before``, ``after`` recovery) and criterion, the distance to the best one."""
        sides = dict(zip(SIDES, (group.alone, group.runs), strict=True))
        every = {side: gaps(runs[runs["criterion"].isin(self.criteria)]) for side, runs in sides.items()}
        return {side: {name: every[side][name] for name in self.criteria} for side in SIDES}


def gaps(runs: DataFrame) -> dict[str, Estimate]:
    """By criterion, the log of its perplexity over that of the best (of the lowest mean): mean over seeds, in nats.

    Seeds are paired: the error is that of the differences, and missing with one seed. All criteria have the same seeds.
    """
    logs = runs.assign(log=np.log(runs["value"].to_numpy(float)), seed=runs["seed"].fillna(-1).astype(int))
    table = logs.pivot(index="seed", columns="criterion", values="log")
    means = {str(name): float(table[name].mean(skipna=False)) for name in table.columns}
    finite = [name for name in means if math.isfinite(means[name])]
    if not finite:
        return {name: Estimate(math.nan, math.nan, len(table)) for name in means}
    first = min(finite, key=lambda name: means[name])
    # the best is no distance from itself in any seed: "± 0" would only be noise
    return {name: estimate(list(table[name] - table[first])) for name in means} | {
        first: Estimate(0.0, math.nan, len(table))
    }


def by_size(rows: DataFrame, view: str) -> list[Sizes]:
    """Models by size, on criteria that were measured before and after recovery.

    Raises:
        FreelunchError: no runs differ in the criterion alone, or such runs are of one model, of models without another
            of their family, or of unknown size.
    """
    groups = compare.comparison(rows, "criterion", view)
    sized = [group for group in groups if group.runs["parameters"].notna().all()]
    every = sizes(sized, lambda group, name: group.baseline(name) is not None)
    if not every:
        models = sorted({str(group.setting["model"]) for group in groups})
        unknown = sorted({str(group.setting["model"]) for group in groups if group not in sized})
        raise FreelunchError(
            f"{view} needs criteria compared before and after recovery in at least two models of known size and of one "
            f"family, all else being equal; suite {compare.suite(rows)} has {', '.join(models)}"
            + (f" (of unknown size: {', '.join(unknown)})" if unknown else "")
        )
    return every


def sizes(groups: Sequence[Group], has: Callable[[Group, str], bool]) -> list[Sizes]:
    """At least two models of one family that are equal in everything else; models without one are together.

    Models (of known size) are compared on the criteria that all of them have; those that have more are compared once
    more, on all that they have. Groups come by size. ``has`` says whether a group has one of its criteria.
    """
    families: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        families.setdefault(compare.known(_alike(group).values()), []).append(group)
    return [sizes for family in families.values() for sizes in _nested(family, has)]


def _alike(group: Group) -> Setting:
    family, tokens = group.runs["family"].iloc[0], group.setting["calibration_tokens"]
    rest = {name: value for name, value in group.setting.items() if name not in ("model", "calibration_tokens")}
    # tokens follow from it: of two settings with as many sequences it is what tells them apart
    length = tokens // group.setting["sequences"]
    return {"family": None if pd.isna(family) else str(family), **rest, "calibration_length": length}


def _nested(groups: list[Group], has: Callable[[Group, str], bool]) -> list[Sizes]:
    own = [tuple(value for value in group.values if has(group, value)) for group in groups]
    common = tuple(value for value in own[0] if all(value in values for values in own))
    nested = []
    for compared in sorted({common, *own}, key=lambda values: (len(values), values)):
        inside = [group for group, values in zip(groups, own, strict=True) if set(compared) <= set(values)]
        if len(compared) > 1 and len(inside) > 1:
            names = " / ".join(text.value("criterion", name) for name in compared)
            inside.sort(key=lambda group: int(group.runs["parameters"].iloc[0]))
            nested.append(Sizes(_alike(groups[0]) | {"criteria": names}, inside, list(compared)))
    return nested


# --- drift -----------------------------------------------------------------------------------------------------------


LOCAL, ACCUMULATED = "drift_local", "drift_accumulated"
LINES = ("variant", "flow", "loss", "repair")
"""What tells the lines of a panel of drifts apart."""
PANEL = ("model", "dataset", "length", *PRUNED)
_FIXED: dict[str, tuple[str, ...]] = {
    "flow": PREFERRED["flow"], "loss": PREFERRED["loss"], "targets": ("all",),
    "parametrization": ("full + biases + norms",),
}  # fmt: skip
"""What reconstructions have in common: the first of these values that there is, or else the first that there is."""


def drifts(rows: DataFrame, view: str) -> DataFrame:
    """Drift by panel, line, metric and ``block``: mean over seeds, its error and their number (``Estimate``).

    There is one line for each window, each loss of retraining (in ``loss``) and each repair. Reconstructions have one
    flow, loss, parametrization and the same targets (named in ``fixed``); other flows of the preferred window are lines
    of their own (in ``flow``). Runs trained on more or fewer sequences than pruning saw are left out where there are
    others. Among other settings the lowest validation perplexity chooses. All lines of a panel are of the same seeds.

    Raises:
        FreelunchError: no pruned run has a drift on held-out text, or no validation perplexity to choose by.
    """
    runs = compare.held_out(rows[rows["metric"].isin([LOCAL, ACCUMULATED]) & (rows["criterion"] != "dense")])
    if runs.empty:
        raise compare.lacking(view, "the drift of pruned runs on held-out text", rows)
    replica = runs["flow"] == REPLICA
    runs = runs.assign(window=runs["window"].mask(replica, REPLICA), flow=runs["flow"].mask(replica, "dense"))
    runs = compare.with_variant(runs)
    trained = runs["training_sequences"]
    same = trained.isna() | runs["sequences"].isna() | (trained == runs["sequences"])
    runs = runs[same | ~runs["recovery"].isin(set(runs.loc[same, "recovery"]))]
    runs = pd.concat([_controlled(panel) for _, panel in runs.groupby(list(PANEL), dropna=False, sort=False)])
    runs = runs.assign(retrained_with=runs["loss"].where(runs["recovery"] == "retrain"))
    lines = ["variant", "other", "retrained_with", "repair"]
    runs = compare.best(runs, [*PANEL, *lines], rows, view)
    runs = pd.concat([_same_seeds(panel, lines) for _, panel in runs.groupby(list(PANEL), dropna=False, sort=False)])
    runs = runs.assign(loss=runs["retrained_with"], flow=runs["other"], block=pd.to_numeric(runs["position"]))
    groups = runs.groupby([*PANEL, *LINES, "metric", "block"], dropna=False, sort=False)
    fixed = groups["fixed"].first()
    means = [estimate(list(values)) for _, values in groups["value"]]
    return DataFrame(means, columns=list(Estimate._fields), index=fixed.index).assign(fixed=fixed).reset_index()


def _controlled(panel: DataFrame) -> DataFrame:
    """A panel with its reconstructions in one setting; the flow of those with another is in ``other``."""
    local = base = compare.recovered(panel, "reconstruct")
    held: dict[str, str | None] = {}
    for axis, wanted in _FIXED.items():
        held[axis] = compare.preferred(base[base["window"] != EXACT], axis, wanted)
        base = base[_has(base, axis, held[axis])]
    window = compare.preferred(base, "window", PREFERRED["window"])
    beside = local[(local["window"] == window) & (local["flow"] != held["flow"])]
    for axis in (axis for axis in _FIXED if axis != "flow"):
        beside = beside[_has(beside, axis, held[axis])]
    rest = panel[panel["recovery"] != "reconstruct"]
    kept = pd.concat([rest.assign(other=math.nan), base.assign(other=math.nan), beside.assign(other=beside["flow"])])
    named = [f"{text.axis(axis).lower()} {text.value(axis, value)}" for axis, value in held.items() if value]
    return kept.assign(fixed=", ".join(named))


def _has(runs: DataFrame, axis: str, value: Any) -> Series[bool]:
    """Which runs have a value of an axis; least squares is solved for whatever is trained beside the weights."""
    has: Series[bool] = runs[axis] == value
    if value is None or axis == "loss":
        has |= runs["window"] == EXACT
    elif axis == "parametrization":
        cores = runs[axis].map(lambda each: compare.parts(each)[0])
        has |= (runs["window"] == EXACT) & (cores == compare.parts(value)[0])
    return has


def _same_seeds(panel: DataFrame, lines: Sequence[str]) -> DataFrame:
    """The lines of a panel at the seeds that all of them have; what is not recovered follows the others."""
    lone = panel["recovery"] == text.NOT_RECOVERED
    if lone.all():
        return panel
    kept = compare.aligned(panel[~lone], lines)
    return pd.concat([kept, compare.among(panel[lone], kept)])


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
    runs = compare.recovered(rows, "reconstruct")
    if runs.empty:
        raise compare.lacking(view, "reconstructed runs", rows)
    losses, window = runs[runs["metric"] == metric], ["suite", "run", "position"]
    if losses.empty:
        suite = compare.suite(rows)
        raise FreelunchError(f"{view} needs the metric {metric}; the runs of suite {suite} do not have it")
    start = runs[(runs["metric"] == "validation_loss") & (runs["step"] == 0)].set_index(window)["value"]
    if start.empty:
        raise compare.lacking(view, "validation losses at step 0", rows)
    initial = losses[window].join(start.rename("initial"), on=window)["initial"].to_numpy(float)
    # a window that started at zero had nothing to gain: no ratio describes it
    ratio = losses["value"].to_numpy(float) / np.where(initial == 0, np.nan, initial)
    losses = compare.with_variant(losses.assign(ratio=ratio)).reset_index(drop=True)
    levels = compare.levels(losses, ("model", "criterion", "pattern", "variant"))
    shown = tuple(axis for axis in levels if axis not in ("criterion", "pattern", "variant"))
    windows = [window_of(*pair) for pair in zip(losses["position"], losses["variant"], strict=True)]
    losses = losses.join(DataFrame(windows))
    by = ["criterion", "pattern", *shown, "variant", "position", *windows[0]]
    by += ["step"] if metric == "validation_loss" else []
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
        raise compare.lacking(view, "zero-shot accuracies of pruned runs", rows)
    columns = zip(runs["dataset"], runs["metric"], runs["position"], strict=True)
    each = [Kind(str(task), str(metric), None if pd.isna(way) else str(way)) for task, metric, way in columns]
    kinds = sorted({kind for kind in each if kind.metric != MEAN},
                   key=lambda kind: (kind.task, METRICS.index(kind.metric), kind.way or ""))  # fmt: skip
    first: dict[str, str] = {}
    for kind in kinds:
        first.setdefault(kind.task, kind.metric)
    names = {kind: "_".join([kind.task, *([] if kind.metric == first[kind.task] else [kind.metric]),
                             *([kind.way] if kind.way else [])]) for kind in kinds}  # fmt: skip
    runs = compare.with_variant(runs).assign(task=[names.get(kind, MEAN) for kind in each], value=100 * runs["value"],
                                             stderr=100 * runs["stderr"])  # fmt: skip
    dense = runs["criterion"] == "dense"
    pruned = runs[~dense].groupby(["model", *PRUNED], dropna=False, sort=False)
    runs = pd.concat([runs[dense], *(compare.aligned(group, ["variant", *RECOVERING]) for _, group in pruned)])
    guesses = rows[rows["metric"] == CHANCE].drop_duplicates("dataset").set_index("dataset")["value"]
    # who guesses is as often right however the log-likelihoods of answers are compared
    chance = {name: 100 * float(guesses[kind.task]) for kind, name in names.items() if kind.task in guesses.index}
    averaged = [chance.get(name, math.nan) for kind, name in names.items() if kind.metric == "acc"]
    if averaged and not any(map(math.isnan, averaged)):
        chance[MEAN] = float(np.mean(averaged))
    return Scores({name: kind for kind, name in names.items()}, runs, chance)
