"""Which runs are compared: equal in every axis but one, at the same seeds; and the means over these."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas import DataFrame, Series

from freelunch.errors import FreelunchError
from freelunch.report import text

WHERE = ("model", "dataset", "length")
PRUNING = (
    "calibration", "sequences", "calibration_tokens", "validation_sequences", "sampling", "allocation", "refinement",
    "prune_inputs", "calibration_images",
)  # fmt: skip
PRUNED = (*PRUNING, "criterion", "pattern")
TRAINING = (
    "loss", "optimizer", "learning_rate", "schedule", "warmup", "epochs", "batch_size", "accumulation", "clip",
    "patience",
)  # fmt: skip
"""Axes that a recovery in closed form does not have."""
RECOVERING = ("flow", "parametrization", "targets", "repair", "backend", *TRAINING, "training_sequences")
"""Axes of the recovery alone: a run that is not recovered stands beside every one of their values."""
AXES = (*WHERE, *PRUNED, "recovery", "window", *RECOVERING)
"""Everything that tells settings apart, but for the seed, which is averaged over."""
REPLICA, EXACT = "official_matrix", "matrix_exact"
"""A flow that stands among the windows, as a variant of ``matrix``; the window that is solved in closed form."""
_NO_SEED = -1
Setting = dict[str, Any]


class Estimate(NamedTuple):
    """A number with its standard error: over seeds if there are several runs, the metric's own if there is one."""

    value: float
    stderr: float = math.nan
    runs: int = 1

    @property
    def error(self) -> float:
        """The standard error, 0 where there is none."""
        return self.stderr if math.isfinite(self.stderr) else 0.0


def estimate(values: Sequence[float], stderrs: Sequence[float] = ()) -> Estimate:
    """Mean over seeds. A value that is not finite makes the mean so: a diverged seed is never left out."""
    if len(values) == 1:
        return Estimate(float(values[0]), float(stderrs[0]) if len(stderrs) else math.nan)
    if not np.isfinite(values).all():
        return Estimate(math.nan if np.isnan(values).any() else math.inf, math.nan, len(values))
    differences = np.subtract(values, values[0])  # exactly 0 where seeds do not matter
    return Estimate(float(np.mean(values)), float(np.std(differences, ddof=1)) / math.sqrt(len(values)), len(values))


def summary(runs: DataFrame, column: str = "value") -> Estimate | None:
    """Mean of a column over runs; None if no run has it. Measured values (``value``) count even if they are NaN."""
    if column == "value":
        return estimate(list(runs["value"]), list(runs["stderr"])) if len(runs) else None
    values = [float(value) for value in runs[column].dropna()]
    if not values:
        return None
    mean = estimate(values)
    # what a setting prescribes does not scatter: "± 0" would only be noise
    return mean if mean.stderr else Estimate(mean.value, math.nan, mean.runs)


def suite(rows: DataFrame) -> str:
    """Name of the suite the rows are of."""
    return ", ".join(sorted(rows["suite"].dropna().unique())) or "without a name"


def lacking(view: str, what: str, rows: DataFrame) -> FreelunchError:
    """What to raise where a suite has no rows that a view needs."""
    return FreelunchError(f"{view} needs {what}; suite {suite(rows)} has none")


def of(frame: DataFrame, setting: Mapping[str, Any]) -> DataFrame:
    """The rows with these values; what is missing equals what is missing."""
    keep = np.ones(len(frame), bool)
    for name, value in setting.items():
        column = frame[name]
        keep &= (column.isna() if pd.isna(value) else (column == value).fillna(False)).to_numpy(bool)
    return frame[keep]


def split(frame: DataFrame, names: Sequence[str]) -> list[tuple[Setting, DataFrame]]:
    """The distinct combinations of some columns, each with its rows, in the order a reader expects."""
    # the keys of groups would be floats where whole numbers are missing in some
    settings: list[Setting] = frame[list(names)].drop_duplicates().to_dict("records")  # type: ignore[assignment]
    groups = (group for _, group in frame.groupby(list(names), dropna=False, sort=False))
    return sorted(zip(settings, groups, strict=True), key=lambda part: [text.order(*pair) for pair in part[0].items()])


def known(key: Iterable[Any]) -> tuple[Any, ...]:
    """A key that compares equal where values are missing."""
    return tuple(None if pd.isna(part) else part for part in key)


def ordered(frame: DataFrame, names: Sequence[str]) -> list[Setting]:
    """The distinct combinations of some columns, in the order a reader expects."""
    settings: list[Setting] = frame[list(names)].drop_duplicates().to_dict("records")  # type: ignore[assignment]
    return sorted(settings, key=lambda setting: [text.order(*pair) for pair in setting.items()])


def values_of(frame: DataFrame, axis: str) -> list[Any]:
    """The values of an axis that are not missing, in the order a reader expects."""
    return sorted(frame[axis].dropna().unique(), key=lambda value: text.order(axis, value))


def varying(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """The axes in which settings differ, in the order of :data:`AXES`."""
    seen: dict[str, set[Any]] = {}
    for setting in settings:
        for name, value in setting.items():
            seen.setdefault(name, set()).add(None if pd.isna(value) else value)
    order = [*AXES, *(name for name in seen if name not in AXES)]
    return [name for name in order if len(seen.get(name, ())) > 1]


# --- seeds -----------------------------------------------------------------------------------------------------------


def aligned(runs: DataFrame, by: Sequence[str]) -> DataFrame:
    """The runs of settings, told apart by some columns, at the seeds that all of these have.

    A seed chooses the calibration text and so the masks. Where no seed is common to all, the one that most settings
    have decides, and settings without it are left out.
    """
    if runs.empty:
        return runs
    seeds = _seeds(runs)
    setting = runs.groupby(list(by), dropna=False, sort=False).ngroup()
    held = [set(group) for _, group in seeds.groupby(setting)]

    def common(seed: int) -> set[int]:
        return set.intersection(*(seeds for seeds in held if seed in seeds))

    most = max(sorted(set(seeds)), key=lambda seed: (sum(seed in each for each in held), len(common(seed)), -seed))
    keep = setting.isin([index for index, each in enumerate(held) if most in each])
    return runs[keep & seeds.isin(common(most))]


def among(runs: DataFrame, others: DataFrame) -> DataFrame:
    """The runs at the seeds of others."""
    return runs[_seeds(runs).isin(_seeds(others))]


def _seeds(runs: DataFrame) -> Series[int]:
    return runs["seed"].fillna(_NO_SEED).astype(int)


# --- what was measured -----------------------------------------------------------------------------------------------


def on_text(rows: DataFrame) -> DataFrame:
    """The perplexities, of all data sets, splits and lengths."""
    return rows[rows["metric"].str.startswith("ppl@", na=False)]


def held_out(measured: DataFrame) -> DataFrame:
    """Of every data set the rows of its test split, or of its validation split if it is not tested on, such as C4."""
    measured = measured[measured["split"].isin(["test", "validation"])]
    tests = measured["split"] == "test"
    return measured[tests | ~measured["dataset"].isin(measured.loc[tests, "dataset"])]


def measured(rows: DataFrame, view: str, split: str = "test") -> DataFrame:
    """One row per run, data set and length: the perplexity of a split in ``value``.

    Raises:
        FreelunchError: no pruned run has such a perplexity.
    """
    runs = on_text(rows)
    runs = runs[runs["split"] == split]
    if runs[runs["criterion"] != "dense"].empty:
        raise lacking(view, f"the {split} perplexity of pruned runs", rows)
    return runs


def with_variant(rows: DataFrame) -> DataFrame:
    """Add the column ``variant``: ``dense``, ``none`` (not recovered), the window, or the recovery without windows."""
    variant = rows["window"].where(rows["window"].notna(), rows["recovery"])
    return rows.assign(variant=variant.where(rows["criterion"] != "dense", "dense"))


def recovered(runs: DataFrame, how: str | None = None) -> DataFrame:
    """The runs that were recovered, or recovered in one way."""
    return runs[runs["recovery"] == how if how else runs["recovery"] != text.NOT_RECOVERED]


def validated(runs: DataFrame, rows: DataFrame, view: str) -> Series[float]:
    """Validation perplexity of runs, by run: on the data it was calibrated with if there is one, at the longest length.

    Raises:
        FreelunchError: a run has none; the message names it.
    """
    validation = measured(rows, view, "validation")
    validation = validation.assign(home=validation["dataset"] == validation["calibration"])
    validation = validation.sort_values(["home", "dataset", "length"]).drop_duplicates("run", keep="last")
    without = sorted(set(runs["run"]) - set(validation["run"]))
    if without:
        raise FreelunchError(f"{view} needs the validation perplexity of every run that it chooses from; "
                             f"{without[0]} of suite {suite(rows)} has none")  # fmt: skip
    return validation.set_index("run")["value"].astype(float)


def best(runs: DataFrame, cell: Sequence[str], rows: DataFrame, view: str) -> DataFrame:
    """Of all settings that share a cell the runs of that with the lowest validation perplexity.

    The settings are compared at the seeds that all of them have. A mean over these that is not finite never wins,
    unless all are such: then the first does.

    Raises:
        FreelunchError: a cell has several settings, and not all runs compared have a validation perplexity.
    """
    rest = [name for name in AXES if name not in cell and name not in ("dataset", "length")]
    kept = []
    for _, group in runs.groupby(list(cell), dropna=False, sort=False):
        settings = ordered(group, rest) if group["run"].nunique() > 1 else []
        if len(settings) > 1:
            fair = aligned(group, rest)
            fair = fair.assign(by=fair["run"].map(validated(fair, rows, view)))
            settings = ordered(fair, rest)
            settings = [settings[lowest(float(of(fair, each)["by"].mean(skipna=False)) for each in settings)]]
        kept.append(of(group, settings[0]) if settings else group)
    return pd.concat(kept) if kept else runs


def preferred(runs: DataFrame, axis: str, wanted: Sequence[str]) -> str | None:
    """The first of the values wanted that an axis has; if it has none of them its first, if it has any."""
    present: list[str] = values_of(runs, axis)
    return next((value for value in wanted if value in present), present[0] if present else None)


def lowest(values: Iterable[float]) -> int:
    """Place of the lowest value; what is not finite comes last."""
    sizes = [value if math.isfinite(value) else math.inf for value in values]
    return sizes.index(min(sizes))


# --- comparisons along one axis --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Group:
    """Recovered runs that differ in one axis (and those said to be free), one row per run, perplexity in ``value``.

    Every value is that of the same seeds, and so are the baselines.

    Attributes:
        setting: the axes they share, with their values.
        alone: runs that were pruned alike and not recovered.
        dense: runs of the dense model.
    """

    axis: str
    setting: Setting
    runs: DataFrame
    alone: DataFrame
    dense: DataFrame

    @property
    def values(self) -> list[Any]:
        """Values of the axis in reading order."""
        return list(self._by_value)

    @cached_property
    def _by_value(self) -> dict[Any, DataFrame]:
        runs = self.runs.dropna(subset=[self.axis])
        return {setting[self.axis]: at for setting, at in split(runs, [self.axis])}

    def at(self, value: Any) -> DataFrame:
        """The runs with a value of the axis."""
        return self._by_value.get(value, self.runs.iloc[:0])

    def estimate(self, value: Any, column: str = "value") -> Estimate | None:
        """Mean of a column over the seeds at a value of the axis; of the perplexity if no column is named."""
        return summary(self.at(value), column)

    def baseline(self, value: Any = None) -> Estimate | None:
        """Perplexity without recovery; where the axis is one of pruning, of the runs with this value of it."""
        varies = self.axis in PRUNED and value is not None
        return summary(of(self.alone, {self.axis: value}) if varies else self.alone)

    @property
    def home(self) -> bool:
        """Whether it was measured on the data set that was calibrated with."""
        return bool(self.setting["dataset"] == self.setting.get("calibration"))


def rows_of(groups: Iterable[Group], rows: DataFrame) -> DataFrame:
    """The test perplexities of the runs in groups, and of those that they are measured against."""
    names = {run for group in groups for runs in (group.runs, group.alone, group.dense) for run in runs["run"]}
    runs = on_text(rows)
    return runs[runs["run"].isin(names) & (runs["split"] == "test")]


def along(runs: DataFrame, axis: str, free: Sequence[str] = (), shared: Sequence[str] = ()) -> list[Group]:
    """Groups of recovered runs that are equal in every axis but one, and have at least two values of it.

    Of every value there are the seeds that all values have; a value that shares none with the others is left out. So
    it is with runs that are not recovered, where the axis is one of pruning and every value has its own. Axes that are
    ``free`` may differ as well; ``shared`` are columns beside the axes that runs of a group share.
    """
    names = [name for name in (*AXES, *shared) if name not in (axis, *free)]
    candidates = recovered(runs).dropna(subset=[axis])
    alone = runs[(runs["recovery"] == text.NOT_RECOVERED) & (runs["criterion"] != "dense")]
    dense = runs[runs["criterion"] == "dense"]
    # the many that are alone are left out before anything is asked of them
    many = candidates.groupby(names, dropna=False, sort=False)["run"].transform("size") > 1
    pruned = [name for name in (*WHERE, *PRUNED) if name in names]
    beside_of = {known(setting.values()): pruned_alike for setting, pruned_alike in split(alone, pruned)}
    groups = []
    for _, group in candidates[many].groupby(names, dropna=False, sort=False):
        group = aligned(group, [axis, *free])
        setting = {name: group[name].iloc[0] for name in names}
        beside = among(beside_of.get(known(setting[name] for name in pruned), alone.iloc[:0]), group)
        if axis in PRUNED and group[axis].nunique() > 1:
            group, beside = _paired(group, beside, [axis, *free])
        if group[axis].nunique() > 1:
            groups.append(Group(axis, setting, group, beside, of(dense, {name: setting[name] for name in WHERE})))
    return sorted(groups, key=lambda group: [text.order(name, group.setting[name]) for name in names])


def _paired(runs: DataFrame, alone: DataFrame, by: Sequence[str]) -> tuple[DataFrame, DataFrame]:
    """Runs before and after recovery at the seeds that all values have on both sides; some may have one side alone."""
    alone = alone[alone[by[0]].isin(runs[by[0]])]
    both = aligned(pd.concat([runs.assign(after=True), alone.assign(after=False)]), ["after", *by])
    after = both["after"].astype(bool)
    return both[after].drop(columns="after"), both[~after].drop(columns="after")


def comparison(rows: DataFrame, axis: str, view: str) -> list[Group]:
    """The groups along an axis: what the tables, figures and verdicts on it compare.

    Along ``window``, norms and biases may be trained or not (column ``extras``). ``sequences`` are those of pruning and
    training together, and those of training alone (axis ``training_sequences``). Along ``loss``, ``parametrization``
    and, if it was run with several, ``sequences``, reconstructions alone.

    Raises:
        FreelunchError: no runs differ in the axis alone.
    """
    runs = measured(rows, view)
    if axis == "window":
        groups = _windows(runs)
    elif axis == "sequences":
        groups = _sizes(runs)
        groups = [group for group in groups if group.setting["recovery"] == "reconstruct"] or groups
    elif axis in ("loss", "parametrization"):
        runs = runs.assign(mismatch=runs["run"].map(merge_mismatch(rows)).fillna(1.0))
        groups = [group for group in along(runs, axis) if group.setting["recovery"] == "reconstruct"]
    else:
        groups = along(runs, axis)
    if not groups:
        raise lacking(view, f"recovered runs that differ in {text.axis(axis).lower()} alone", rows)
    return groups


def _windows(runs: DataFrame) -> list[Group]:
    """Windows; the replica of the official code, and matrices of which some are ``targets``, are windows of their own.

    What is solved in closed form has no training settings, and stands in every group that is otherwise equal: in those
    that there are without it, or if there are none, beside every window.
    """
    replica = runs["flow"] == REPLICA
    runs = runs.assign(window=runs["window"].mask(replica, REPLICA), flow=runs["flow"].mask(replica, "dense"))
    some = (runs["window"] == "matrix") & (runs["targets"].fillna("all") != "all")
    named = runs["window"].mask(some, runs["targets"].map(text.control, na_action="ignore"))
    runs = runs.assign(window=named, targets=runs["targets"].mask(some, "all"))
    split: Any = DataFrame([parts(each) for each in runs["parametrization"]], index=runs.index, dtype="str")
    runs = runs.assign(core=split[0], extras=split[1])
    exact = runs["window"] == EXACT
    # norms may be trained or not: matrices, in which there are none, stand beside both
    free, shared = ("parametrization", "extras"), ("core",)
    groups = along(runs[~exact], "window", free, shared)
    if not exact.any():
        return groups
    beside = pd.concat([group.runs for group in groups]) if groups else recovered(runs[~exact], "reconstruct")
    alike = [*WHERE, *PRUNED, "recovery", "flow", "targets", "core", "training_sequences"]
    # it solves for the mean squared error
    beside = beside[beside["loss"].isna() | (beside["loss"] == "mse")][[*alike, *TRAINING]].drop_duplicates()
    adopted: Any = runs[exact].drop(columns=list(TRAINING)).merge(beside, on=alike)
    return along(pd.concat([runs[~exact], adopted[[*runs.columns]]]), "window", free, shared)


def by_extras(group: Group) -> list[Group]:
    """Of windows one group for each way to train norms and biases, which is in its setting; else the group."""
    if group.axis != "window":
        return [group]
    return [replace(group, setting=group.setting | {"extras": extras}, runs=of(group.runs, {"extras": extras}))
            for extras in values_of(group.runs, "extras")]  # fmt: skip


def _sizes(runs: DataFrame) -> list[Group]:
    length = runs["calibration_tokens"] // runs["sequences"]
    trained = runs["training_sequences"].fillna(runs["sequences"])
    runs = runs.assign(calibration_length=length, tokens=trained * length)
    both = runs[(trained == runs["sequences"]).fillna(False) | (runs["criterion"] == "dense")]
    together = along(both, "sequences", ("calibration_tokens", "training_sequences"), ("calibration_length",))
    return [*together, *along(runs, "training_sequences")]


def parts(parametrization: Any) -> tuple[str | None, str | None]:
    """How weights are trained, and which of norms and biases are beside them; nothing where nothing is trained."""
    if pd.isna(parametrization):
        return None, None
    every = parametrization.split(" + ")
    core = [part for part in every if part not in ("biases", "norms")]
    if not core:
        return parametrization, "only"
    return " + ".join(core), " + ".join(part for part in every if part not in core) or "frozen"


def of_matrices(window: str) -> bool:
    """Whether windows hold single matrices, and no whole submodule."""
    return window in (EXACT, "matrix", REPLICA, "key_up") or text.is_control(window)


def merge_mismatch(rows: DataFrame) -> dict[str, float]:
    """Of every run whose merging is not exact, the loss of its merged windows over the loss training saw.

    Both are of the last step. They are sums over the windows that have both; what is not finite makes the ratio so.
    """
    step = ["run", "position", "step"]
    merged, unmerged = (rows[rows["metric"] == name].set_index(step)["value"]
                        for name in ("validation_loss", "unmerged_validation_loss"))  # fmt: skip
    both = pd.concat([merged.rename("merged"), unmerged.rename("unmerged")], axis=1, join="inner")
    sums = {str(run): windows.sum(skipna=False) for run, windows in both.groupby("run")}
    # nothing left to lose: no mismatch
    return {run: float(sum_["merged"] / sum_["unmerged"]) if sum_.any() else 1.0 for run, sum_ in sums.items()}


def fullest(groups: Sequence[Group]) -> list[Group]:
    """Of the groups that were measured and pruned alike those with the most values of the axis."""
    keys = [known(group.setting.get(name) for name in (*WHERE, *PRUNED)) for group in groups]
    most: dict[tuple[Any, ...], int] = {}
    for key, group in zip(keys, groups, strict=True):
        most[key] = max(most.get(key, 0), len(group.values))
    return [group for key, group in zip(keys, groups, strict=True) if len(group.values) == most[key]]


# --- all settings of a metric ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cells:
    """A number by setting (the values of ``levels``) and by variant; both are in reading order."""

    levels: tuple[str, ...]
    settings: list[Setting]
    variants: list[str]
    cells: dict[tuple[tuple[Any, ...], str], Estimate]

    def get(self, setting: Setting, variant: str) -> Estimate | None:
        return self.cells.get((known(setting.values()), variant))


def perplexities(rows: DataFrame, view: str) -> Cells:
    """The perplexities of pruned runs on held-out text; a split that is not ``test`` is told in the data set's name.

    Raises:
        FreelunchError: no pruned run has one.
    """
    runs = held_out(on_text(rows))
    if runs[runs["criterion"] != "dense"].empty:
        raise lacking(view, "a perplexity of pruned runs", rows)
    return cells(runs.assign(dataset=runs["dataset"].where(runs["split"] == "test", runs["dataset"] + " (validation)")))


def levels(rows: DataFrame, cell: Sequence[str]) -> tuple[str, ...]:
    """The axes of cells, in reading order: those given, and those without which settings would share a cell."""
    chosen: list[str] = []
    for axis in (*PRUNING, *RECOVERING):
        before = [*cell, *chosen]
        if len(rows[[*before, axis]].drop_duplicates()) > len(rows[before].drop_duplicates()):
            chosen.append(axis)
    order = (*WHERE, *PRUNED, "variant", *RECOVERING)
    return tuple(axis for axis in order if axis in (*cell, *chosen))


def cells(runs: DataFrame) -> Cells:
    """One metric of pruned runs by setting and variant, the dense model's beside each of them.

    Args:
        runs: one row per run, data set and length; at least one of a pruned run.
    """
    runs = with_variant(runs)
    pruned = runs[runs["variant"] != "dense"]
    names = tuple(axis for axis in levels(pruned, (*WHERE, "criterion", "pattern", "variant")) if axis != "variant")
    shared = [name for name in names if name not in RECOVERING]
    trained = pruned[pruned["variant"] != text.NOT_RECOVERED]
    # what is not recovered stands beside recovered runs that were pruned alike, or for itself
    beside = {known(key) for key in trained[shared].itertuples(index=False)}
    lone = [known(key) not in beside for key in pruned[shared].itertuples(index=False)]
    settings = ordered(pd.concat([trained, pruned[lone]]), names)
    variants = [each["variant"] for each in ordered(runs, ["variant"])]
    table: dict[tuple[tuple[Any, ...], str], Estimate] = {}
    for variant in variants:
        by = {"dense": list(WHERE), text.NOT_RECOVERED: shared}.get(variant, list(names))
        groups = runs[runs["variant"] == variant].groupby(by, dropna=False)
        means = {known(key): estimate(list(group["value"]), list(group["stderr"])) for key, group in groups}
        for setting in settings:
            key = known(setting[name] for name in by)
            if key in means:
                table[known(setting.values()), variant] = means[key]
    return Cells(names, settings, variants, table)
