"""Comparisons of more than one axis: sweeps of learning rates, retraining over tokens, criteria by model size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas import DataFrame

from freelunch.errors import FreelunchError
from freelunch.report import text
from freelunch.report.compare import (
    AXES,
    PRUNED,
    WHERE,
    Estimate,
    Group,
    Setting,
    aligned,
    along,
    among,
    best,
    comparison,
    estimate,
    known,
    lacking,
    lowest,
    measured,
    of,
    preferred,
    recovered,
    split,
    suite,
    summary,
    validated,
)

AUTO = "auto"
SERIES = ("recovery", "loss", "parametrization", "window", "targets", "repair")
"""What tells the lines of a race apart."""
PREFERRED: dict[str, tuple[str, ...]] = {"window": ("attention_mlp", "block"), "flow": ("dense",), "loss": ("mse",)}
"""Reconstruction as the paper recommends it, where a suite has others too."""


# --- learning rates --------------------------------------------------------------------------------------------------


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
        """By the validation and by the test perplexity, each at the cost of the sweep.

        ``auto`` is one choice more, at its own cost: of all lengths it was tried with, the one that the validation
        perplexity selects.
        """
        tried = [("validation", self.rates), ("test", self.rates), *([(AUTO, self.auto)] if self.auto else [])]
        found = []
        for by, rates in tried:
            values = [(rate.test if by == "test" else rate.validation).value for rate in rates]
            cost = sum(rate.seconds for rate in rates), sum(rate.runs for rate in rates)
            found.append(Choice(by, rates[lowest(values)], *cost))
        return found


def sweeps(rows: DataFrame, view: str) -> list[Sweep]:
    """All sweeps of at least two learning rates; the validation perplexity is that on the calibration data.

    Raises:
        FreelunchError: there is no such sweep, or no validation perplexity to select by.
    """
    found = []
    for group in along(measured(rows, view), "learning_rate", ("epochs",)):
        runs = group.runs.assign(validation=group.runs["run"].map(validated(group.runs, rows, view)))
        rates = []
        for setting, at in split(runs, ["learning_rate", "epochs"]):
            test = estimate(list(at["value"]), list(at["stderr"]))
            rates.append(Rate(str(setting["learning_rate"]), int(setting["epochs"]), estimate(list(at["validation"])),
                              test, float(at["seconds"].sum()), len(at)))  # fmt: skip
        swept = [rate for rate in rates if rate.learning_rate != AUTO]
        if len({rate.learning_rate for rate in swept}) > 1:
            found.append(Sweep(group, swept, [rate for rate in rates if rate.learning_rate == AUTO]))
    if not found:
        raise lacking(view, "recovered runs that differ in learning rate alone", rows)
    return found


# --- retraining ------------------------------------------------------------------------------------------------------


def races(rows: DataFrame, view: str) -> list[Group]:
    """For each way to prune: reconstruction and retraining along the training tokens; repairs train on none.

    Reconstruction is that of one window, flow and loss: attention and MLP apart, dense and mean squared error if there
    are such runs. It has the parametrizations that retraining has, if they have some in common. Among runs that differ
    in other settings alone (learning rate, epochs, ...) the lowest validation perplexity chooses. Of all that is left
    there are the seeds that all have.

    Runs also have ``operations``, missing where the size of the model is not known: 6 per parameter and token (two
    forward, four backward), also for the tokens that searches of rates took. Windows tile the network, so what they
    train on together is one pass over the model for every token.

    Raises:
        FreelunchError: there are no retrained runs beside reconstructed ones that were pruned alike, or no validation
            perplexities to choose by.
    """
    runs = measured(rows, view)
    place = [*WHERE, *PRUNED]
    groups = []
    for _, group in runs[runs["criterion"] != "dense"].groupby(place, dropna=False, sort=False):
        retrained, local = recovered(group, "retrain"), recovered(group, "reconstruct")
        for axis, wanted in PREFERRED.items():
            chosen = preferred(local, axis, wanted)
            local = local if chosen is None else local[local[axis] == chosen]
        if retrained.empty or local.empty:
            continue
        common = local["parametrization"].isin(retrained["parametrization"])
        trained = pd.concat([local[common] if common.any() else local, retrained])
        # tokens it was given: those it took are fewer where it stopped early, which a seed decides
        length = trained["calibration_tokens"] // trained["sequences"]
        given = (trained["epochs"] * trained["training_sequences"] * length).fillna(trained["training_tokens"])
        trained = best(trained.assign(budget=given), ["dataset", "length", *SERIES, "flow", "budget"], rows, view)
        repaired = recovered(group, "repair").assign(training_tokens=0, search_tokens=0, budget=0)
        every = aligned(pd.concat([repaired, trained]), [*SERIES, "budget"])
        if not {"reconstruct", "retrain"} <= set(every["recovery"]):
            continue
        tokens = every["training_tokens"].astype("float64")
        operations = (
            6 * every["parameters"].astype("float64") * (tokens + every["search_tokens"].astype("float64").fillna(0))
        )
        means = every.assign(tokens_=tokens, operations=operations).groupby(
            [*SERIES, "budget"], dropna=False, sort=False
        )
        every = every.assign(operations=means["operations"].transform("mean"),
                             training_tokens=means["tokens_"].transform("mean").round().astype("Int64"))  # fmt: skip
        setting = {name: group[name].iloc[0] for name in place}
        dense = of(runs[runs["criterion"] == "dense"], {name: setting[name] for name in WHERE})
        alone = group[group["recovery"] == text.NOT_RECOVERED].assign(training_tokens=0, operations=0.0)
        groups.append(Group("training_tokens", setting, every, among(alone, every), dense))
    if not groups:
        raise lacking(view, "reconstructed and retrained runs that were pruned alike", rows)
    return sorted(groups, key=lambda group: [text.order(name, group.setting[name]) for name in place])


def runners(group: Group) -> list[tuple[Setting, DataFrame]]:
    """The lines of a race in reading order, each with what it is and its runs."""
    return split(group.runs, SERIES)


# --- criteria by size of model ---------------------------------------------------------------------------------------


SIDES = ("before", "after")
ALIKE = ("family", *AXES, "calibration_length", "criteria")
"""Axes of models that are compared by size, in the order that they are told in."""


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
        dense = [mean.value for mean in (summary(group.dense) for group in self.groups) if mean is not None]
        return all(later <= earlier for earlier, later in pairwise(dense))

    def gaps(self, group: Group) -> dict[str, dict[str, Estimate]]:
        """By side (``before``, ``after`` recovery) and criterion, the distance to the best one."""
        sides = {"before": group.alone, "after": group.runs}
        found = {side: gaps(runs[runs["criterion"].isin(self.criteria)]) for side, runs in sides.items()}
        return {side: {name: found[side][name] for name in self.criteria} for side in SIDES}


def gaps(runs: DataFrame) -> dict[str, Estimate]:
    """By criterion the logarithm of its perplexity over the best criterion's: the mean over seeds, in nats.

    The best is the one with the lowest mean logarithm, so no gap is negative. Seeds are paired: the error is that of
    the differences, and missing with one seed.

    Args:
        runs: one row per criterion and seed, perplexity in ``value``; all criteria at the same seeds.
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
    groups = comparison(rows, "criterion", view)
    sized = [group for group in groups if group.runs["parameters"].notna().all()]
    found = sizes(sized, lambda group, name: group.baseline(name) is not None)
    if not found:
        models = sorted({str(group.setting["model"]) for group in groups})
        unknown = sorted({str(group.setting["model"]) for group in groups if group not in sized})
        raise FreelunchError(
            f"{view} needs criteria compared before and after recovery in at least two models of known size and of one "
            f"family, all else being equal; suite {suite(rows)} has {', '.join(models)}"
            + (f" (of unknown size: {', '.join(unknown)})" if unknown else "")
        )
    return found


def sizes(groups: Sequence[Group], has: Callable[[Group, str], bool]) -> list[Sizes]:
    """At least two models of one family that are equal in everything else; models without one are together.

    Models are compared on the criteria that all of them have. A model with few criteria takes none from the others:
    those that have more are compared once more, on all that they have. Groups come by size.

    Args:
        groups: along the criterion, of models of known size.
        has: whether a group has one of its criteria.
    """
    families: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        families.setdefault(known(_alike(group).values()), []).append(group)
    return [one for inside in families.values() for one in _nested(inside, has)]


def _alike(group: Group) -> Setting:
    family, tokens = group.runs["family"].iloc[0], group.setting["calibration_tokens"]
    rest = {name: value for name, value in group.setting.items() if name not in ("model", "calibration_tokens")}
    # tokens follow from it: of two settings with as many sequences it is what tells them apart
    length = tokens // group.setting["sequences"]
    return {"family": None if pd.isna(family) else str(family), **rest, "calibration_length": length}


def _nested(groups: list[Group], has: Callable[[Group, str], bool]) -> list[Sizes]:
    own = [tuple(value for value in group.values if has(group, value)) for group in groups]
    common = tuple(value for value in own[0] if all(value in values for values in own))
    found = []
    for compared in sorted({common, *own}, key=lambda values: (len(values), values)):
        inside = [group for group, values in zip(groups, own, strict=True) if set(compared) <= set(values)]
        if len(compared) > 1 and len(inside) > 1:
            names = " / ".join(text.value("criterion", name) for name in compared)
            inside.sort(key=lambda group: int(group.runs["parameters"].iloc[0]))
            found.append(Sizes(_alike(groups[0]) | {"criteria": names}, inside, list(compared)))
    return found
