"""Figures: the forms that comparisons share, and those of their own; each is a function of a view and rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from pandas import DataFrame

from freelunch.report import compare, studies, text
from freelunch.report.compare import PRUNED, WHERE, Cells, Estimate, Group, Setting, split
from freelunch.report.plot import (
    BLACK,
    DASHES,
    DOTS,
    GREY,
    MIXED,
    NONE,
    SERIES,
    Drawing,
    Level,
    Look,
    Panel,
    Series,
    looks,
    strokes,
)
from freelunch.report.studies import ACCUMULATED, AUTO, LINES, LOCAL, MEAN, PANEL, SIDES
from freelunch.report.tables import fixed_note, size_note
from freelunch.report.views import View

Points = list[tuple[float, Estimate]]
_PLACE = (*WHERE, *PRUNED)
_ALONE, _DENSE = text.value("variant", text.NOT_RECOVERED), text.value("variant", "dense")
_FITTING = 14
"""Values that can be printed in one panel."""


def categories(view: View, rows: DataFrame) -> Drawing:
    """One mark per value of an axis without a scale; series are the groups, of windows apart by norms and biases.

    Where the axis is one of pruning, what is not recovered is a series of its own; else it is a line across. Windows of
    matrices are no sizes of the same thing: their marks are not joined.
    """
    groups = compare.comparison(rows, view.along, str(view))
    differing = [axis for axis in compare.varying(group.setting for group in groups) if axis != "core"]
    pruning = view.along in PRUNED
    default = "Recovered" if pruning else "Reconstruction"
    split = [(part, _series_name(part, differing, default)) for group in groups for part in compare.by_extras(group)]
    styles = dict(zip(dict.fromkeys(name for _, name in split), SERIES * 9, strict=False))
    if pruning:
        styles = {_ALONE: looks(["none"])["none"], **styles}
    values = compare.values_of(pd.concat([group.runs for group in groups]), view.along)
    spread = np.linspace(-0.3, 0.3, len(styles)) if len(styles) > 1 else np.zeros(1)
    shift = dict(zip(styles, spread, strict=True))
    panels = []
    for title, inside in _panels(split):
        series = []
        for group, name in inside:
            marks = [(values.index(value) + float(shift[name]), value, group.estimate(value)) for value in group.values]
            for joined in (False, True):
                points = [(x, cell) for x, value, cell in marks if cell and joined == _joined(view.along, value)]
                if points:
                    series.append(Series(name, points, styles[name], "-" if joined else NONE))
        if pruning:
            first = inside[0][0]
            alone = [(values.index(value) + float(shift[_ALONE]), first.baseline(value)) for value in first.values]
            series.insert(0, Series(_ALONE, [(x, cell) for x, cell in alone if cell], styles[_ALONE]))
        panels.append(_compared_panel(title, series, inside[0][0], text.axis(view.along), alone=not pruning,
                                      ticks=[text.value(view.along, value) for value in values],
                                      printed=len(styles) * len(values) <= _FITTING))  # fmt: skip
    return Drawing(view, panels, compare.rows_of(groups, rows), height=2.6)


def scatter(view: View, rows: DataFrame) -> Drawing:
    """Perplexity over a column of the runs, one mark per value of the axis; a panel per group.

    Of windows with norms and biases trained in several ways the first is shown (of ``text.yaml``); of parametrizations
    the groups with most of them.
    """
    (column,) = view.columns
    groups = compare.comparison(rows, view.along, str(view))
    groups = [_first_extras(group) for group in groups] if view.along == "window" else compare.fullest(groups)
    groups = [group for group in groups if sum(group.estimate(value, column) is not None for value in group.values) > 1]
    if not groups:
        raise compare.lacking(str(view), f"{text.axis(column).lower()} of at least two runs that are compared", rows)
    values = compare.values_of(pd.concat([group.runs for group in groups]), view.along)
    styles = looks(values) if view.along == "window" else dict(zip(values, SERIES * 9, strict=False))
    differing = [axis for axis in compare.varying(group.setting for group in groups) if axis != "core"]
    panels = []
    for group in sorted(groups, key=lambda group: not group.home):
        series = [Series(text.value(view.along, value), points, styles[value]) for value in group.values
                  if (points := _points(group, [value], column))]  # fmt: skip
        panels.append(_compared_panel(title_of(group.setting, differing), series, group, text.axis(column),
                                      log_x=text.compact))  # fmt: skip
    return Drawing(view, panels, compare.rows_of(groups, rows))


def _first_extras(group: Group) -> Group:
    rank = group.runs["extras"].map({name: index for index, name in enumerate(text.TEXT["values"]["extras"])})
    return replace(group, runs=group.runs[rank == rank.groupby(group.runs["window"]).transform("min")])


def calibration_size(view: View, rows: DataFrame) -> Drawing:
    """Over the tokens that recovery was given: a line per series, and what is not recovered."""
    groups = compare.comparison(rows, view.along, str(view))
    named = []
    for group in groups:
        settings = [each.setting for each in groups if each.axis == group.axis]
        differing = [
            axis for axis in compare.varying(settings) if axis not in ("training_sequences", "calibration_length")
        ]
        saw = "as much" if group.axis == "sequences" else f"{group.setting['sequences']} sequences"
        named.append((group, f"{_name(group, differing, 'Recovered')} (pruning saw {saw})"))
    styles = dict(zip(dict.fromkeys(name for _, name in named), SERIES * 9, strict=False))
    panels = []
    for title, inside in _panels(named, ("sequences", "calibration_tokens")):
        series = [Series(name, _points(group, group.values, "tokens"), styles[name], "-") for group, name in inside]
        for group, _ in inside:
            alone = [(x, group.baseline(value)) for value in group.values for x, _ in _points(group, [value], "tokens")]
            series.append(Series(_ALONE, [(x, cell) for x, cell in alone if cell], looks(["none"])["none"], DOTS))
        panels.append(
            _compared_panel(title, series, inside[0][0], text.axis("tokens"), alone=False, log_x=text.compact)
        )
    return Drawing(view, panels, compare.rows_of(groups, rows))


def retraining(view: View, rows: DataFrame) -> Drawing:
    """One line per loss and parametrization, over tokens and beside that over operations, if the size is known."""
    groups = studies.races(rows, str(view))
    lines = [studies.runners(group) for group in groups]
    every = [about for inside in lines for about, _ in inside]
    names = dict.fromkeys(
        _runner(about, every) for about in sorted(every, key=lambda each: each["recovery"] == "repair")
    )
    styles = dict(zip(names, SERIES * 9, strict=False))
    scales = [
        "training_tokens",
        *(["operations"] if all(group.runs["operations"].notna().all() for group in groups) else []),
    ]
    panels = []
    for title, [(group, _)] in _panels([(group, "") for group in groups]):
        for column in scales:
            series, repairs = [], []
            for about, runs in lines[groups.index(group)]:
                name = _runner(about, every)
                if about["recovery"] == "repair":
                    mean = compare.summary(runs)
                    repairs.append(Level(name, mean.value if mean else np.nan, Look(styles[name].colour), MIXED, False))
                    continue
                at = [each for _, each in split(runs, ["training_tokens"])]
                points = [(float(each[column].iloc[0]), cell) for each in at if (cell := compare.summary(each))]
                series.append(Series(name, points, styles[name], "-"))
            panel = _compared_panel(title, series, group, text.axis(column), log_x=text.compact)
            panels.append(replace(panel, levels=[*repairs, *panel.levels]))
    return Drawing(view, panels, compare.rows_of(groups, rows))


def _runner(about: Setting, every: Sequence[Setting]) -> str:
    """What a line of a race is called: the axes in which lines differ; a loss says that it is retraining."""
    how = about["recovery"]
    if how == "repair":
        return f"{text.value('recovery', how)}, {text.value('repair', about['repair'])}"
    alike = [other for other in every if other["recovery"] == how]
    trained = [other for other in every if other["recovery"] != "repair"]
    axes = [axis for axis in compare.varying(alike) if axis != "parametrization"]
    axes += ["loss"] if how == "retrain" and "loss" not in axes else []
    axes += ["parametrization"] if "parametrization" in compare.varying(trained) else []
    first = [] if how == "retrain" else [text.value("recovery", how)]
    return ", ".join([*first, *(text.value(axis, about[axis]) for axis in axes)])


def learning_rate(view: View, rows: DataFrame) -> Drawing:
    """One colour per number of epochs: validation solid, test dashed; rings and squares are what either selects."""
    swept = studies.sweeps(rows, str(view))
    swept = [sweep for sweep in swept if sweep.group.home] or swept
    differing = compare.varying(sweep.group.setting for sweep in swept)
    epochs = sorted({rate.epochs for sweep in swept for rate in (*sweep.rates, *sweep.auto)})
    styles = dict(zip(epochs, SERIES * 9, strict=False))
    panels = []
    for sweep in swept:
        series, across = [], []
        for count, look in styles.items():
            at = sorted((float(rate.learning_rate), rate) for rate in sweep.rates if rate.epochs == count)
            name = text.counted(count, "epoch")
            series += [Series(name, [(x, rate.validation) for x, rate in at], look, "-"),
                       Series(name, [(x, rate.test) for x, rate in at], look, DASHES)]  # fmt: skip
        for choice in sweep.choices():
            if choice.by == AUTO:
                across.append(Level("Test, search in each window", choice.rate.test.value, Look(GREY), MIXED))
                continue
            cell = choice.rate.test if choice.by == "test" else choice.rate.validation
            series.append(Series(f"Selected by {choice.by}", [(float(choice.rate.learning_rate), Estimate(cell.value))],
                                 Look(BLACK, "o" if choice.by == "validation" else "s"), hollow=True))  # fmt: skip
        title = title_of(sweep.group.setting, differing)
        panel = _compared_panel(title, series, sweep.group, "Learning rate", measure="Perplexity", log_x=_rate)
        panels.append(replace(panel, levels=[*across, *panel.levels]))
    keys = (Level("Validation", 0, Look(GREY), "-"), Level("Test", 0, Look(GREY), DASHES))
    settings = [sweep.group.setting for sweep in swept]
    others = sorted({str(each["calibration"]) for each in settings if each["calibration"] != each["dataset"]})
    notes = (text.TEXT["views"][view.name]["elsewhere"].format(", ".join(others)),) if others else ()
    return Drawing(view, panels, compare.rows_of([sweep.group for sweep in swept], rows), keys=keys, notes=notes)


def _rate(value: float) -> str:
    """0.0005 as 5e-4."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def scale(view: View, rows: DataFrame) -> Drawing:
    """Gaps of criteria over the number of parameters; the best criterion of a model has the gap 0, and no mark."""
    every = studies.by_size(rows, str(view))
    differing = compare.varying(sizes.setting for sizes in every)
    styles = dict(zip(dict.fromkeys(name for sizes in every for name in sizes.criteria), SERIES, strict=False))
    panels = []
    for sizes in every:
        by_group = [(float(group.runs["parameters"].iloc[0]), sizes.gaps(group)) for group in sizes.groups]
        gaps = {side: [(size, sides[side]) for size, sides in by_group] for side in SIDES}
        series = [
            Series(text.value("criterion", name), [(x, gap[name]) for x, gap in gaps[side] if not gap[name].value <= 0],
                   styles[name], DASHES if side == "before" else "-")
            for name in sizes.criteria for side in SIDES
        ]  # fmt: skip
        models = " to ".join(str(sizes.groups[end].setting["model"]) for end in (0, -1))
        panels.append(Panel(title_of(sizes.setting | {"model": models}, differing), series, "Parameters of the model",
                            "Log perplexity over that\nof the best criterion (nats)", log_x=text.compact))  # fmt: skip
    keys = (Level("Before recovery", 0, Look(GREY), DASHES), Level("After recovery", 0, Look(GREY), "-"))
    used = compare.rows_of(compare.comparison(rows, "criterion", str(view)), rows)
    return Drawing(view, panels, used, keys=keys, notes=size_note(every))


def drift(view: View, rows: DataFrame) -> Drawing:
    """Drift over depth, a line per way to recover but for repairs: left of blocks alone, right with all before."""
    frame = studies.drifts(rows, str(view))
    lines = [line for line in compare.ordered(frame, LINES) if line["variant"] != "repair"]
    names = [", ".join(text.value(axis, value) for axis, value in line.items() if not pd.isna(value)) for line in lines]
    variants = [str(line["variant"]) for line in lines]
    once = [variant if variants.index(variant) == index else names[index] for index, variant in enumerate(variants)]
    styles = list(looks(once).values())
    settings = compare.ordered(frame, PANEL)
    differing = [axis for axis in compare.varying(settings) if axis != "dataset"]
    panels = []
    for setting in sorted(settings, key=lambda setting: setting["dataset"] != setting["calibration"]):
        home = " (calibration data)" if setting["dataset"] == setting["calibration"] else ""
        for metric, what in ((LOCAL, "block alone"), (ACCUMULATED, "all blocks before")):
            panel = compare.of(frame, setting | {"metric": metric})
            series = []
            for index, (line, look, stroke) in enumerate(zip(lines, styles, strokes(styles), strict=True)):
                one = compare.of(panel, line).sort_values("block")
                points = [
                    (float(block), Estimate(float(value)))
                    for block, value in zip(one["block"], one["value"], strict=True)
                ]
                if points:
                    series.append(Series(names[index], points, look, stroke, every=(index % 4, 4), size=3.2))
            title = f"{title_of(setting, differing)}\n{setting['dataset']}{home}: {what}"
            panels.append(Panel(title, series, "Depth (block)", "Drift of the block's output\n(squared, relative)",
                                counts="value"))  # fmt: skip
    used = rows[rows["metric"].isin([LOCAL, ACCUMULATED])]
    return Drawing(view, panels, used, height=2.4, lines=True, notes=fixed_note(frame))


def gain(view: View, rows: DataFrame) -> Drawing:
    """Gain over depth, one series per kind of window; panels are models, criteria and patterns."""
    frame, names, kinds = _windows(view, rows, "best_validation_loss")
    frame = frame.assign(gain=100 * (1 - frame["ratio"]))
    finite = frame["gain"][np.isfinite(frame["gain"])]
    limits = (min([0.0, *finite]), max([1.0, *finite]))
    styles = looks(kinds)
    panels = []
    for setting, at in split(frame, names):
        series = []
        for kind in kinds:
            one = at[at["part"] == kind].sort_values("first")
            points = [
                (float(depth), Estimate(float(value))) for depth, value in zip(one["depth"], one["gain"], strict=True)
            ]
            spans = [float(each) for each in (one["last"] - one["first"]) / 2]
            if points:
                series.append(Series(text.value("window", kind), points, styles[kind], "-", spans=spans, size=3))
        panels.append(Panel(title_of(setting, names), series, "Depth (block)", "Gain (% of initial\nvalidation loss)",
                            limits=limits, log_y=False, counts="window"))  # fmt: skip
    return Drawing(view, panels, _reconstructed(rows), height=1.9, shared=True)


def validation_loss(view: View, rows: DataFrame) -> Drawing:
    """One thin line per window, coloured by depth; a panel per kind of window, criterion and pattern."""
    frame, names, kinds = _windows(view, rows, "validation_loss")
    finite = frame["ratio"][np.isfinite(frame["ratio"]) & (frame["ratio"] > 0)]
    limits = (min([0.9, *finite]), max([1.0, *finite]))
    one = [Level("", 1.0, Look(GREY), (0, (2, 2)), said=False)]
    settings = compare.ordered(frame, names)
    panels = []
    for kind in kinds:
        for setting in settings:
            at = compare.of(frame, setting | {"part": kind})
            many = [(float(window["depth"].iloc[0]), window.sort_values("step")[["step", "ratio"]].to_numpy(float))
                    for _, window in at.groupby("position", sort=False)]  # fmt: skip
            if many:
                panels.append(Panel(f"{title_of(setting, names)}\n{text.value('window', kind)}", [], "Optimiser step",
                                    "Loss / initial loss", one, limits=limits, many=many, counts="window"))  # fmt: skip
    columns = min(4, len(settings))
    return Drawing(view, panels, _reconstructed(rows), columns, 1.6, True, depth=max(float(frame["last"].max()), 1.0))


def _windows(view: View, rows: DataFrame, metric: str) -> tuple[DataFrame, tuple[str, ...], list[str]]:
    """Losses of windows, the axes that tell panels apart, and the kinds of windows in reading order."""
    frame, extra = studies.curves(rows, str(view), metric)
    kinds = [each["part"] for each in compare.ordered(frame.assign(window=frame["variant"]), ["window", "part"])]
    return frame, (*extra, "criterion", "pattern"), list(dict.fromkeys(kinds))


def _reconstructed(rows: DataFrame) -> DataFrame:
    return rows[rows["recovery"] == "reconstruct"]


def perplexity(view: View, rows: DataFrame) -> Drawing:
    """By criterion and pattern: one mark per way to recover, with its value; the dense model is a dashed line."""

    def label(setting: Setting) -> str:
        name = str(setting["dataset"])
        what = "Perplexity" if name.endswith("(validation)") else "Test perplexity"
        return f"{what}\n({name}, {setting['length']} tokens)"

    return Drawing(view, _by_pruning(compare.perplexities(rows, str(view)), label), rows, 1, 2.1)


def zero_shot(view: View, rows: DataFrame) -> Drawing:
    """The mean over tasks, as :func:`perplexity`; guessing is a dotted line."""
    accuracies = studies.scores(rows, str(view))
    means = accuracies.rows[accuracies.rows["task"] == MEAN].drop(columns=["variant", "task"])
    if means[means["criterion"] != "dense"].empty:
        raise compare.lacking(str(view), "the mean accuracy over tasks", rows)
    panels = _by_pruning(compare.cells(means), lambda _: "Mean zero-shot\naccuracy (%)", log=False)
    if MEAN in accuracies.chance:
        chance = Level(text.value("variant", "chance"), accuracies.chance[MEAN], Look(GREY), DOTS)
        panels = [replace(panel, levels=[*panel.levels, chance]) for panel in panels]
    used = rows[rows["metric"].isin([*(kind.metric for kind in accuracies.kinds.values()), MEAN, "chance"])]
    return Drawing(view, panels, used, 1, 2.1)


def _by_pruning(numbers: Cells, label: Any, log: bool = True) -> list[Panel]:
    """Criteria and patterns side by side, in lines of as many as fit; panels for every other axis that differs."""
    variants = [variant for variant in numbers.variants if variant != "dense"]
    styles = looks(variants)
    others = [name for name in numbers.levels if name not in ("criterion", "pattern")]
    apart: dict[tuple[Any, ...], list[Setting]] = {}
    for setting in numbers.settings:
        apart.setdefault(compare.known(setting[name] for name in others), []).append(setting)
    differing = [
        axis for axis in compare.varying(numbers.settings) if axis in others and axis not in ("dataset", "length")
    ]
    most = max(1, int(16 / (len(variants) + 0.6)))
    spread = (len(variants) - 1) / (len(variants) + 0.6) / 2
    shifts = np.linspace(-spread, spread, len(variants)) if len(variants) > 1 else np.zeros(1)
    panels = []
    for settings in apart.values():
        dense = numbers.get(settings[0], "dense")
        levels = [Level(_DENSE, dense.value)] if dense else []
        values = [cell for setting in settings for variant in variants if (cell := numbers.get(setting, variant))]
        finite = [cell.value for cell in values if np.isfinite(cell.value)]
        lines = -(-len(settings) // most)
        width = -(-len(settings) // lines)
        for line in (settings[start : start + width] for start in range(0, len(settings), width)):
            series = [Series(text.value("variant", variant),
                             [(index + float(shift), cell) for index, setting in enumerate(line)
                              if (cell := numbers.get(setting, variant))], styles[variant])
                      for variant, shift in zip(variants, shifts, strict=True)]  # fmt: skip
            ticks = [f"{text.value('criterion', each['criterion'])}\n{each['pattern']}" for each in line]
            title = ", ".join(text.described(axis, line[0][axis]) for axis in dict.fromkeys(("model", *differing))
                              if not pd.isna(line[0][axis]))  # fmt: skip
            limits = (min(finite), max(finite)) if finite else None
            panels.append(Panel(title, series, "", label(line[0]), levels, ticks, None, log, limits, printed=True))
    return panels


# --- what comparisons share ------------------------------------------------------------------------------------------


def _compared_panel(
    title: str,
    series: list[Series],
    group: Group,
    x: str,
    alone: bool = True,
    measure: str = "Test perplexity",
    **more: Any,
) -> Panel:
    """A panel with the dense model across, and what is not recovered."""
    lines = [(_DENSE, compare.summary(group.dense), Look(BLACK), DASHES),
             *([(_ALONE, group.baseline(), Look(GREY), DOTS)] if alone else [])]  # fmt: skip
    across = [Level(name, cell.value, look, line) for name, cell, look, line in lines if cell is not None]
    where = f"{group.setting['dataset']}, {group.setting['length']} tokens"
    return Panel(title, series, x, f"{measure}\n({where})", across, squeezed=True, **more)


def _panels(
    named: Sequence[tuple[Group, str]], within: Iterable[str] = ()
) -> list[tuple[str, list[tuple[Group, str]]]]:
    """Groups by where they were measured and how they were pruned, with titles; first those on calibrated data."""
    apart = [axis for axis in _PLACE if axis not in set(within)]
    differing = [axis for axis in compare.varying(group.setting for group, _ in named) if axis in apart]
    panels: dict[tuple[Any, ...], list[tuple[Group, str]]] = {}
    for group, name in named:
        panels.setdefault(compare.known(group.setting.get(axis) for axis in apart), []).append((group, name))
    titled = [(title_of(inside[0][0].setting, differing), inside) for inside in panels.values()]
    return sorted(titled, key=lambda panel: not panel[1][0][0].home)


def title_of(setting: Setting, differing: Iterable[str]) -> str:
    """``llama-3m, Wanda, 2:4``, and below it the other axes that tell panels apart."""
    first = [text.value(axis, setting[axis]) for axis in ("model", "criterion", "pattern") if axis in setting]
    # tokens follow from sequences; the data set and the length are at the y axis
    skipped = ("model", "criterion", "pattern", "calibration_tokens", "dataset", "length")
    rest = [
        text.described(axis, setting[axis]) for axis in differing if axis not in skipped and not pd.isna(setting[axis])
    ]
    return "\n".join([", ".join(first), *([", ".join(rest)] if rest else [])])


def _name(group: Group, differing: Iterable[str], default: str = "") -> str:
    """What a series is called: the axes in which it differs from the others of its figure."""
    axes = [axis for axis in differing if axis not in _PLACE and not pd.isna(group.setting.get(axis))]
    return ", ".join(text.described(axis, group.setting[axis]) for axis in axes) or default


def _series_name(group: Group, differing: Sequence[str], default: str) -> str:
    if group.axis != "window":
        return _name(group, differing, default)
    core = group.setting["core"]
    words = ["" if core == "full" else text.value("parametrization", core)]
    words += [text.value("extras", group.setting["extras"]), _name(group, differing)]
    name = ", ".join(word for word in words if word)
    return name[:1].upper() + name[1:]


def _joined(axis: str, value: Any) -> bool:
    return axis == "window" and not compare.of_matrices(value)


def _points(group: Group, values: Iterable[Any], column: str) -> Points:
    """Perplexities over a column of the runs."""
    pairs = [(group.estimate(value, column), group.estimate(value)) for value in values]
    return [(x.value, cell) for x, cell in pairs if x is not None and cell is not None]
