"""Tables: the form that comparisons share, and those of their own; each is a function of a view and rows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas import DataFrame, Series

from freelunch.errors import FreelunchError
from freelunch.report import compare, studies, text
from freelunch.report.compare import AXES, PRUNED, RECOVERING, WHERE, Estimate, Group, Setting, levels, suite
from freelunch.report.studies import ACCUMULATED, ALIKE, LINES, LOCAL, MEAN, METRICS, PANEL, SERIES, SIDES
from freelunch.report.views import REFERENCES, View

Cell = Estimate | None
COUNTS = frozenset({"training_tokens", "search_tokens", "trainable_parameters", "trials", "seeds"})
"""Columns that are integers, written with all digits."""


class Contest(NamedTuple):
    """Cells, by line and column, of which the lowest number (or the highest) is the best, and bold."""

    cells: Sequence[tuple[int, int]]
    highest: bool = False


@dataclass(frozen=True)
class Table:
    """Lines of estimates under columns.

    Attributes:
        levels: axes whose values (the key of a line) tell lines apart.
        columns: headings by name.
        constants: axes with one value in all lines.
        notes: sentences for the caption.
        runs: the rows whose protocol the caption tells.
    """

    view: View
    suite: str
    levels: tuple[str, ...]
    columns: dict[str, str]
    lines: list[tuple[tuple[Any, ...], tuple[Cell, ...]]]
    runs: DataFrame
    constants: Setting = field(default_factory=dict)
    contests: tuple[Contest, ...] = ()
    notes: tuple[str, ...] = ()


def compared(view: View, rows: DataFrame) -> Table:
    """One line per setting of a comparison: test perplexity, columns of the runs, and what it is measured against.

    Along an axis of pruning what is not recovered differs too, stands first and is compared as well.
    """
    groups = compare.comparison(rows, view.along, str(view))
    axes = list(dict.fromkeys(group.axis for group in groups))
    names = _levels(pd.concat([group.runs for group in groups]), [*axes, *view.levels])
    both = groups[0].axis in ("criterion", "calibration")
    if both:
        # lines that are compared stand below each other
        names = (*(axis for axis in names if axis not in axes), *axes)
    return _compared(view, rows, groups, [group.runs for group in groups], names, view.columns, both)


def retraining(view: View, rows: DataFrame) -> Table:
    """Reconstruction, retraining and repair; what is not recovered, or repaired without training, has 0 tokens."""
    groups = studies.races(rows, str(view))
    lines = [pd.concat([group.alone, group.runs]) for group in groups]
    runs = pd.concat(lines)
    wanted = ["recovery", "loss", "parametrization", "training_tokens"]
    wanted += [axis for axis in SERIES if runs[axis].nunique() > 1]
    names = tuple(axis for axis in _levels(runs, wanted) if axis in groups[0].setting or axis in wanted)
    return _compared(view, rows, groups, lines, names, ("operations", "seconds", "peak_gib"))


def _compared(
    view: View, rows: DataFrame, groups: Sequence[Group], runs: Sequence[DataFrame], names: Sequence[str],
    more: Sequence[str], both: bool = False,
) -> Table:  # fmt: skip
    """A line per setting of the runs of every group; those of recovered runs are rivals."""
    lines: dict[tuple[Any, ...], tuple[Cell, ...]] = {}
    for group, here in zip(groups, runs, strict=True):
        for setting, at in compare.split(here, names):
            value, dense, alone = (
                compare.summary(at),
                compare.summary(group.dense),
                group.baseline(at[group.axis].iloc[0]),
            )
            cells = [compare.summary(at, column) for column in more]
            # what stands in two groups is the same run
            lines[compare.known(setting.values())] = (
                (dense, alone, value, *cells) if both else (value, *cells, alone, dense)
            )
    none, dense_ = ({variant: text.value("variant", variant)} for variant in ("none", "dense"))
    further = {column: text.axis(column) for column in more}
    columns = (
        dense_ | none | {"perplexity": "Recovered"} | further
        if both
        else {"perplexity": "Perplexity"} | further | none | dense_
    )
    rivals = [[compare.known(setting.values()) for setting in compare.ordered(group.runs, names)] for group in groups]
    constants = _constants(pd.concat(runs), names)
    return _sorted(
        view, compare.rows_of(groups, rows), names, columns, lines, rivals, [1, 2] if both else [0], constants
    )


def learning_rate(view: View, rows: DataFrame) -> Table:
    """What is selected by validation and by test perplexity, at the cost of the sweep; the search, at its own."""
    swept = studies.sweeps(rows, str(view))
    runs = pd.concat([sweep.group.runs for sweep in swept])
    own = ("selection", "learning_rate", "epochs")
    shared = tuple(axis for axis in _levels(runs, ()) if axis not in own)
    lines: dict[tuple[Any, ...], tuple[Cell, ...]] = {}
    for sweep in swept:
        key = tuple(sweep.group.setting[axis] for axis in shared)
        for choice in sweep.choices():
            lines[compare.known((*key, choice.by, choice.rate.learning_rate, choice.rate.epochs))] = (
                choice.rate.test, choice.rate.validation, Estimate(choice.seconds, runs=choice.runs),
                Estimate(choice.runs, runs=choice.runs), sweep.group.baseline(), compare.summary(sweep.group.dense),
            )  # fmt: skip
    columns = {"perplexity": "Perplexity", "validation_perplexity": "Validation perplexity",
               "seconds": "Time of all runs (s)", "trials": "Runs", "none": text.value("variant", "none"),
               "dense": text.value("variant", "dense")}  # fmt: skip
    names = (*shared, *own)
    used = compare.rows_of([sweep.group for sweep in swept], rows)
    return _sorted(view, used, names, columns, lines, [], [], _constants(runs, names))


def perplexity(view: View, rows: DataFrame) -> Table:
    """One column per way to recover; a level for every axis that differs."""
    numbers = compare.perplexities(rows, str(view))
    constants: Setting = {axis: numbers.settings[0][axis] for axis in ("dataset", "length")
                 if len({setting[axis] for setting in numbers.settings}) == 1}  # fmt: skip
    names = tuple(name for name in numbers.levels if name not in constants)
    lines = [(tuple(setting[name] for name in names), tuple(numbers.get(setting, each) for each in numbers.variants))
             for setting in numbers.settings]  # fmt: skip
    pruned = [column for column, variant in enumerate(numbers.variants) if variant != "dense"]
    contests = tuple(Contest([(line, column) for column in pruned]) for line in range(len(lines)))
    # some variants (model, repair) are called as an axis is, which may be a column too
    columns = {variant if variant not in AXES else f"{variant}_perplexity": text.value("variant", variant)
               for variant in numbers.variants}  # fmt: skip
    return Table(view, suite(rows), names, columns, lines, rows, constants, contests)


def cost(view: View, rows: DataFrame) -> Table:
    """Time, peak memory, tokens of training and of searching rates, and sparsity of every setting."""
    runs = compare.with_variant(rows).drop_duplicates(["suite", "run"])
    runs = runs[runs["variant"] != "dense"]
    if runs.empty:
        raise compare.lacking(str(view), "pruned runs", rows)
    names = levels(runs, ("model", "criterion", "pattern", "variant"))
    columns = ("seconds", "peak_gib", "training_tokens", "search_tokens", "achieved_sparsity")
    lines = {compare.known(setting.values()): tuple(compare.summary(at, column) for column in columns)
             for setting, at in compare.split(runs, names)}  # fmt: skip
    return _sorted(view, rows, names, {column: text.axis(column) for column in columns}, lines)


def drift(view: View, rows: DataFrame) -> Table:
    """Drift at the last block; ``domain`` says whether the data set is the one that was calibrated with."""
    frame = studies.drifts(rows, str(view))
    panels = compare.ordered(frame, PANEL)
    differing = compare.varying(panels)
    shown = [axis for axis in PANEL if axis in ("model", "dataset", "criterion", "pattern") or axis in differing]
    after = shown.index("dataset") + 1
    series = [axis for axis in LINES if axis == "variant" or frame[axis].notna().any()]
    lines: list[tuple[tuple[Any, ...], tuple[Cell, ...]]] = []
    contests = []
    for setting in panels:
        panel = compare.of(frame, setting)
        key = [setting[axis] for axis in shown]
        key.insert(after, "in" if setting["dataset"] == setting["calibration"] else "out")
        first = len(lines)
        lines += [((*key, *line.values()), _drift_cells(at)) for line, at in compare.split(panel, series)]
        contests.append(Contest([(index, 1) for index in range(first, len(lines))]))
    columns = {"drift_local": "Block alone", "drift_accumulated": "With all blocks before",
               "accumulation": "Accumulated / alone", "drift_local_mean": "Mean over blocks, alone"}  # fmt: skip
    names = (*shown[:after], "domain", *shown[after:], *series)
    used = rows[rows["metric"].isin([LOCAL, ACCUMULATED])]
    return Table(view, suite(rows), names, columns, lines, used, {}, tuple(contests), fixed_note(frame))


def _drift_cells(line: DataFrame) -> tuple[Cell, ...]:
    blocks = {metric: compare.of(line, {"metric": metric}).sort_values("block") for metric in (LOCAL, ACCUMULATED)}
    ends = [Estimate(float(last["value"]), float(last["stderr"]), int(last["runs"])) if last is not None else None
            for last in (at.iloc[-1] if len(at) else None for at in blocks.values())]  # fmt: skip
    local, accumulated = ends
    times = None
    if local is not None and accumulated is not None:
        times = Estimate(accumulated.value / local.value if local.value else math.inf, math.nan, accumulated.runs)
    mean = Estimate(float(blocks[LOCAL]["value"].mean(skipna=False))) if len(blocks[LOCAL]) else None
    return local, accumulated, times, mean


def fixed_note(frame: DataFrame) -> tuple[str, ...]:
    """What reconstructions have in common where a line of drifts says nothing else."""
    fixed = " or ".join(dict.fromkeys(each for each in frame["fixed"] if each))
    return (text.TEXT["views"]["drift"]["fixed"].format(fixed),) if fixed else ()


def scale(view: View, rows: DataFrame) -> Table:
    """One line per model and criterion; the best criterion of a model has the gap 0."""
    every = studies.by_size(rows, str(view))
    differing = compare.varying(sizes.setting for sizes in every)
    always = [axis for axis in ("dataset", "length", "pattern", "window") if axis not in differing]
    constants: Setting = {axis: every[0].setting[axis] for axis in ("dataset", "length") if axis in always}
    shown = [
        axis for axis in ALIKE if axis in (*always, *differing) and axis in every[0].setting and axis not in constants
    ]
    lines: list[tuple[tuple[Any, ...], tuple[Cell, ...]]] = []
    for sizes in every:
        for group in sizes.groups:
            gaps = sizes.gaps(group)
            about = [
                *(sizes.setting[axis] for axis in shown),
                int(group.runs["parameters"].iloc[0]),
                group.setting["model"],
            ]
            lines += [((*about, name), tuple(gaps[side][name] for side in SIDES)) for name in sizes.criteria]
    columns = {f"gap_{side}": f"Gap {side} recovery (nats)" for side in SIDES}
    used = compare.rows_of(compare.comparison(rows, "criterion", str(view)), rows)
    names = (*shown, "parameters", "model", "criterion")
    return Table(view, suite(rows), names, columns, lines, used, constants, (), size_note(every))


def size_note(every: Iterable[Any]) -> tuple[str, ...]:
    """Where a gap says less about size than about how well models are trained."""
    worse = [", ".join(str(group.setting["model"]) for group in sizes.groups) for sizes in every if not sizes.better]
    note = text.TEXT["views"]["scale"]["not_by_size"]
    return (note.format("; ".join(dict.fromkeys(worse))),) if worse else ()


def seeds(view: View, rows: DataFrame) -> Table:
    """Mean, standard error and spread of every setting that was run with at least two seeds."""
    runs = compare.with_variant(compare.measured(rows, str(view)))
    runs = runs[runs["criterion"] != "dense"]
    count = runs.groupby([*AXES, "variant"], dropna=False, sort=False)["seed"].transform("nunique")
    if not (count > 1).any():
        raise compare.lacking(str(view), "a setting that was run with at least two seeds", rows)
    runs = runs[count > 1]
    order = (*WHERE, *PRUNED, "variant", *RECOVERING)
    # what a recovery lacks tells nothing apart that its name does not
    always = ("model", "criterion", "pattern", "variant")
    names = tuple(axis for axis in order if axis in always or runs[axis].nunique() > 1)
    lines: dict[Any, tuple[tuple[Any, ...], tuple[Cell, ...]]] = {}
    for key, group in runs.groupby([*AXES, "variant"], dropna=False, sort=False):
        values = group["value"].to_numpy(float)
        finite = bool(np.isfinite(values).all())
        deviation = float(np.std(values, ddof=1)) if finite else math.nan
        relative = 100 * float(np.std(values, ddof=1) / np.mean(values)) if finite else math.inf
        single = (deviation, relative, float(values.min()), float(values.max()), float(len(values)))
        cells = (compare.estimate(list(values)), *(Estimate(value, runs=len(values)) for value in single))
        lines[compare.known(key)] = (compare.known(group[axis].iloc[0] for axis in names), cells)
    columns = {"perplexity": "Perplexity", "deviation": "Standard deviation",
               "relative": "Standard deviation (% of the mean)", "lowest": "Lowest", "highest": "Highest",
               "seeds": "Seeds"}  # fmt: skip
    ranked = sorted(lines.values(), key=lambda line: _rank(names, line[0]))
    return Table(view, suite(rows), names, columns, ranked, runs, _constants(runs, names))


def zero_shot(view: View, rows: DataFrame) -> Table:
    """One column per accuracy of a task, and the mean. Guessing is the first line, the dense model that of its runs."""
    measured = studies.scores(rows, str(view))
    pruned = measured.rows[measured.rows["variant"] != "dense"]
    names = levels(pruned, ("model", "criterion", "pattern", "variant"))
    columns = {}
    for name, (task, metric, way) in measured.kinds.items():
        called = f"{task}, normalised" if metric == "acc_norm" else task
        words = [None if metric in ("acc", "acc_norm") else metric, way, "%"]
        columns[name] = f"{called} ({', '.join(part for part in words if part)})"
    if MEAN in set(measured.rows["task"]):
        columns[MEAN] = "Mean (%)"

    def accuracies(runs: DataFrame) -> tuple[Cell, ...]:
        return tuple(compare.summary(runs[runs["task"] == name]) for name in columns)

    nothing: Setting = dict.fromkeys(names)
    lines: dict[tuple[Any, ...], tuple[Cell, ...]] = {}
    if measured.chance:
        guesses = {name: Estimate(value) for name, value in measured.chance.items()}
        lines[compare.known((nothing | {"variant": "chance"}).values())] = tuple(guesses.get(name) for name in columns)
    for model, dense in measured.rows[measured.rows["variant"] == "dense"].groupby("model", sort=False):
        lines[compare.known((nothing | {"model": model, "variant": "dense"}).values())] = accuracies(dense)
    for setting, at in compare.split(pruned, names):
        lines[compare.known(setting.values())] = accuracies(at)
    rivals: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for key in lines:
        line = dict(zip(names, key, strict=True))
        if line["variant"] not in ("chance", "dense", text.NOT_RECOVERED):
            rivals.setdefault((line["model"], line["pattern"]), []).append(key)
    used = rows[rows["metric"].isin([*(kind.metric for kind in measured.kinds.values()), MEAN, "chance"])]
    return _sorted(view, used, names, columns, lines, list(rivals.values()), list(range(len(columns))), highest=True)


def published(view: View, rows: DataFrame) -> Table:
    """One line per number that was published and measured; accuracies are fractions."""
    joined = beside_published(rows, references(), str(view)).rename(columns={"metric": "measure"})
    recovered = ~joined["variant"].isin([text.NOT_RECOVERED, "dense"])
    always = ("source", "model", "dataset", "length", "measure", "criterion", "pattern", "variant")
    extra = [axis for axis in (*PRUNED, *RECOVERING) if axis not in always and joined[axis].nunique() > 1]
    names = (*always, *(["published_recovery"] if recovered.any() else []), *extra)
    lines: list[tuple[tuple[Any, ...], tuple[Cell, ...]]] = []
    for setting, at in compare.split(joined, names):
        theirs, ours = float(at["published"].iloc[0]), compare.estimate(list(at["value"]), list(at["stderr"]))
        cells = (Estimate(theirs), ours, Estimate(ours.value - theirs, ours.stderr, ours.runs))
        lines.append((tuple(setting.values()), cells))
    columns = {"published": "Published", "ours": "Ours", "difference": "Ours - published"}
    return Table(view, suite(rows), names, columns, lines, rows)


PUBLISHED = ("source", "model", "criterion", "pattern", "recovery", "dataset", "length", "metric", "value")
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
        if tuple(frame.columns) != PUBLISHED:
            raise FreelunchError(f"{path}: its columns are not {', '.join(PUBLISHED)}")
        if frame[["source", "model", "metric", "value"]].isna().any(axis=None):
            raise FreelunchError(f"{path}: a row lacks its source, model, metric or value")
        try:
            frames.append(frame.astype({"value": "float64", "length": "float64"}).astype({"length": "Int64"}))
        except ValueError as error:
            raise FreelunchError(f"{path}: {error}") from None
    if not frames:
        raise FreelunchError(f"{folder}: there are no published numbers (*.csv)")
    return pd.concat(frames, ignore_index=True)


def beside_published(rows: DataFrame, theirs: DataFrame, view: str) -> DataFrame:
    """Rows of a suite, once for each published number that agrees with them.

    That is in ``published``, with its ``source`` and how that model was recovered (``published_recovery``). Names agree
    if their letters and digits do, whatever their case: ``Llama-2-7b`` and ``llama_2_7b``. A model that is not
    recovered stands beside a published one that is not, and a recovered one beside recovered ones, however they were.
    Methods with another allocation than ``uniform``, or a refinement, are left out: the published criteria have none.

    Raises:
        FreelunchError: no number of the suite has a published one.
    """
    perplexity = rows["metric"].str.startswith("ppl@", na=False)
    ours = compare.with_variant(rows[(perplexity & (rows["split"] == "test")) | rows["metric"].isin(METRICS)])
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
    models = []
    for model, group in frame.groupby("model", sort=True):
        measured = group[["dataset", "length"]].drop_duplicates().itertuples(index=False)
        at = [f"{data}" + ("" if pd.isna(length) else f" at {length}") for data, length in measured]
        models.append(f"{model} ({', '.join(at[:3])}{', …' if len(at) > 3 else ''})")
    return ", ".join(models) or "nothing"


# --- how tables are built ---------------------------------------------------------------------------------------------


def _levels(runs: DataFrame, wanted: Sequence[str]) -> tuple[str, ...]:
    """The model, criterion, pattern and the levels wanted, with every axis that differs, in reading order."""
    always = ("model", "criterion", "pattern", *wanted)
    order = (*WHERE, *PRUNED, *AXES, *wanted)
    return tuple(dict.fromkeys(axis for axis in order if axis in always or runs[axis].nunique(dropna=False) > 1))


def _constants(runs: DataFrame, names: Sequence[str]) -> Setting:
    return {axis: runs[axis].iloc[0] for axis in ("dataset", "length") if axis not in names}


def _rank(names: Sequence[str], key: Sequence[Any]) -> list[Any]:
    return [text.order(axis, part) for axis, part in zip(names, key, strict=True)]


def _sorted(
    view: View,
    runs: DataFrame,
    names: Sequence[str],
    columns: dict[str, str],
    lines: Mapping[tuple[Any, ...], tuple[Cell, ...]],
    rivals: Sequence[Sequence[tuple[Any, ...]]] = (),
    contested: Sequence[int] = (),
    constants: Setting | None = None,
    highest: bool = False,
) -> Table:
    """A table of lines in reading order; in every contested column the best of the lines that are rivals is bold."""
    keys = sorted(lines, key=lambda key: _rank(names, key))
    contests = tuple(Contest([(keys.index(key), column) for key in group], highest) for group in rivals
                     for column in contested)  # fmt: skip
    return Table(view, suite(runs), tuple(names), columns, [(key, lines[key]) for key in keys], runs, constants or {},
                 contests)  # fmt: skip
