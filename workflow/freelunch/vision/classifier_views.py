"""Tables, figures and verdicts of the second paper: classifiers, ERK against LAMP, repair against recalibration.

Accuracies are in percent; all means and differences are over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby, product
from typing import Any, NamedTuple, cast

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from pandas import DataFrame

from freelunch.errors import FreelunchError
from freelunch.report import text
from freelunch.report.compare import Estimate, estimate, lacking, ordered, suite, summary, values_of
from freelunch.report.plot import BLACK, DOTS, DOUBLE, GREY, SERIES, Drawing, Level, Line, Look, Panel, Series, grid
from freelunch.report.tables import Cell, Contest, Table
from freelunch.report.verdicts import FAILS, HOLDS, PARTLY, Case
from freelunch.report.views import View

Key = tuple[str, float, str, str]
SETTING = ("model", "sparsity", "allocation", "backend")
"""What tells the accuracies of a view apart, besides the seed; the parts of a :data:`Key`."""
RECALIBRATED, CONTROL, MATCHED = "recalibrate", "recalibrate_epsilon", "shrink"
"""Backends that comparisons are about: recalibration layer by layer, the same with a much smaller epsilon, and the
repair by activation statistics."""
REPAIRS = ("channel", "layer", "shrink")
_REPAIRED = (RECALIBRATED, MATCHED, "reconstruct")
"""Backends with a panel; the others differ from these so little that the table is the place for them."""


class Accuracies(NamedTuple):
    """Test accuracies in percent, of pruned networks and, in the mean, of these before pruning."""

    pruned: DataFrame
    seeds: dict[Key, DataFrame]
    """``value`` and ``stderr`` by seed, by the settings of the runs."""
    dense: dict[str, Estimate]

    def mean(self, *key: Any) -> Estimate | None:
        """Over the seeds of a setting, if it was run."""
        return summary(self.seeds[key]) if key in self.seeds else None

    def difference(self, first: Key, second: Key) -> Estimate | None:
        """Mean over common seeds of the first less the second setting; None without a common seed.

        With one seed there is no error: both are the same network on the same images.
        """
        if first not in self.seeds or second not in self.seeds:
            return None
        gaps = (self.seeds[first]["value"] - self.seeds[second]["value"]).dropna()
        return estimate([*gaps.sort_index()]) if len(gaps) else None

    def erk_less_lamp(self, model: str, sparsity: float, backend: str) -> Estimate | None:
        """The difference between the allocations that the second paper compares."""
        return self.difference((model, sparsity, "erk", backend), (model, sparsity, "lamp", backend))


def accuracies(rows: DataFrame, view: str) -> Accuracies:
    """The accuracies of a suite; a threshold over the whole network is the allocation ``global``.

    Raises:
        FreelunchError: no pruned classifier was measured, or runs differ in something else than :data:`SETTING`.
    """
    frame = _with_global(rows[(rows["metric"] == "accuracy") & (rows["split"] == "test")])
    frame = frame.assign(value=100 * frame["value"], stderr=100 * frame["stderr"])
    is_dense = frame["criterion"] == "dense"
    pruned = frame[~is_dense]
    if pruned.empty:
        raise lacking(view, "accuracies of pruned classifiers", rows)
    twice = pruned[pruned.duplicated([*SETTING, "seed"], keep=False)]
    if len(twice):
        example = ", ".join(f"{axis} {twice[axis].iloc[0]}" for axis in (*SETTING, "seed"))
        raise FreelunchError(
            f"{view} compares runs of one criterion, kind of pattern and calibration; suite {suite(rows)} has "
            f"{twice['run'].nunique()} runs that are alike otherwise ({example}, …)"
        )
    seeds = {cast(Key, key): runs.set_index("seed")[["value", "stderr"]] for key, runs in pruned.groupby([*SETTING])}
    dense = {
        str(model): estimate([*runs["value"]], [*runs["stderr"]]) for model, runs in frame[is_dense].groupby("model")
    }
    return Accuracies(pruned, seeds, dense)


def per_layer(rows: DataFrame, metric: str, view: str) -> DataFrame:
    """A metric of every layer or norm of pruned classifiers, refused if there are none; ``step`` counts from 1."""
    frame = _with_global(rows[(rows["metric"] == metric) & rows["backend"].notna()])
    if frame.empty:
        raise lacking(view, "pruned classifiers", rows)
    return frame


def clear(gap: Estimate, least: float = 1.0) -> bool:
    """Whether a difference is at least ``least`` points and, where there are seeds, more than two standard errors."""
    return abs(gap.value) >= least and abs(gap.value) > 2 * gap.error


def signed(gap: Estimate) -> str:
    """``+1.2 ± 0.4``."""
    # equal differences leave rounding
    return f"{gap.value:+.1f}" + (f" ± {gap.stderr:.2g}" if gap.error > 1e-9 else "")


def percent(sparsity: float) -> str:
    """``95.5%``."""
    return f"{100 * sparsity:g}%"


class Point(NamedTuple):
    """A network, pruned in one way. Gains are in accuracy over that after recalibration alone."""

    model: str
    allocation: str
    sparsity: float
    lost: float
    """What recalibration leaves to be gained; NaN if it or the dense network was not measured."""
    repair: str
    """The backend among the repairs that gains most."""
    gain: Estimate
    control: Estimate | None
    """The gain of recalibration with a much smaller epsilon."""
    variance: float
    """The least of any channel that a norm reads, over all seeds."""
    epsilon: float

    @property
    def recovers(self) -> bool:
        """Whether the repair is clearly better where recalibration leaves more than a point to be gained."""
        return not self.lost <= 1 and self.gain.value > 0 and clear(self.gain)

    @property
    def escapes(self) -> bool:
        """Whether the smaller epsilon, if it was measured, gains at least half as much: epsilon explains the repair."""
        return self.control is not None and self.control.value >= 0.5 * self.gain.value


def transitions(rows: DataFrame, view: str) -> list[Point]:
    """Pruned networks that were recalibrated and repaired, refused if there are none, as by :func:`accuracies`."""
    known = accuracies(rows, view)
    norms = _with_global(rows[rows["metric"].isin(["least_variance", "epsilon"]) & (rows["backend"] == RECALIBRATED)])
    least = norms.groupby([*SETTING[:3], "metric"])["value"].min().to_dict()
    points = []
    for setting in ordered(known.pruned, ["model", "allocation", "sparsity"]):
        at = model, sparsity, allocation = setting["model"], setting["sparsity"], setting["allocation"]
        plain = (*at, RECALIBRATED)
        gains = {repair: known.difference((*at, repair), plain) for repair in REPAIRS}
        measured = {repair: gain for repair, gain in gains.items() if gain is not None}
        if not measured:
            continue
        best = max(measured, key=lambda repair: measured[repair].value)
        dense, recalibrated = known.dense.get(model), known.mean(*plain)
        lost = dense.value - recalibrated.value if dense and recalibrated else math.nan
        points.append(Point(
            model, allocation, sparsity, lost, best, measured[best], known.difference((*at, CONTROL), plain),
            *(float(least.get((*at, metric), math.nan)) for metric in ("least_variance", "epsilon")),
        ))  # fmt: skip
    if not points:
        raise lacking(view, "classifiers that were recalibrated and repaired", rows)
    return points


def _with_global(rows: DataFrame) -> DataFrame:
    whole = rows["pattern"].str.endswith(" global").fillna(False).astype(bool)
    return rows.assign(allocation=rows["allocation"].mask(whole, "global"))


# --- table and figures -----------------------------------------------------------------------------------------------


def accuracy_table(view: View, rows: DataFrame) -> Table:
    """One line per network, sparsity and allocation, one column per backend; first the dense network, which has one."""
    known = accuracies(rows, str(view))
    backends = values_of(known.pruned, "backend")
    lines: list[tuple[tuple[Any, ...], tuple[Cell, ...]]] = []
    contests: list[Contest] = []
    for model, settings in groupby(ordered(known.pruned, SETTING[:3]), lambda setting: setting["model"]):
        lines.append(((model, "dense", None), (known.dense.get(model), *[None] * (len(backends) - 1))))
        for sparsity, rivals in groupby(settings, lambda setting: setting["sparsity"]):
            first = len(lines)
            for allocation in [setting["allocation"] for setting in rivals]:
                cells = tuple(known.mean(model, sparsity, allocation, backend) for backend in backends)
                lines.append(((model, percent(sparsity), allocation), cells))
            places = range(first, len(lines))
            contests += [Contest([(line, column) for line in places], highest=True) for column in range(len(backends))]
    columns = {backend: f"{text.value('backend', backend)} (%)" for backend in backends}
    return Table(view, suite(rows), SETTING[:3], columns, lines, rows, contests=tuple(contests))


def accuracy(view: View, rows: DataFrame) -> Drawing:
    """Over sparsity, one line per allocation; rows of panels are networks, columns backends."""
    known = accuracies(rows, str(view))
    models, sparsities, allocations, every = (values_of(known.pruned, axis) for axis in SETTING)
    shown = [backend for backend in every if backend in ("none", *_REPAIRED)] or every
    panels = []
    for model, backend in product(models, shown):
        series = []
        for allocation, look in _looks(allocations).items():
            cells = ((100 * sparsity, known.mean(model, sparsity, allocation, backend)) for sparsity in sparsities)
            points = [(sparsity, cell) for sparsity, cell in cells if cell is not None]
            series.append(Series(text.value("allocation", allocation), points, look, "-"))
        dense = known.dense.get(model)
        across = [Level("Dense", dense.value, said=backend == shown[-1])] if dense else []
        title = f"{model}\n{text.value('backend', backend)}"
        panels.append(Panel(title, series, "Sparsity (%)", "Test accuracy (%)", across, limits=(0, 100), log_y=False))
    return Drawing(view, panels, rows, len(shown), 1.75)


def allocation(view: View, rows: DataFrame) -> Drawing:
    """A heat map for each backend: networks by sparsities, in points of accuracy; what is clear is bold."""
    known = accuracies(rows, str(view))
    models, sparsities, _, backends = (values_of(known.pruned, axis) for axis in SETTING)
    keys = product(models, sparsities, [backend for backend in backends if backend in _REPAIRED])
    gaps = {key: gap for key in keys if (gap := known.erk_less_lamp(*key)) is not None}
    if not gaps:
        raise lacking(str(view), "classifiers pruned with erk and with lamp", rows)
    return Drawing(view, [], rows, custom=lambda: _heat_maps(gaps))


def _heat_maps(gaps: dict[tuple[str, float, str], Estimate]) -> Figure:
    models, sparsities, backends = (list(dict.fromkeys(part)) for part in zip(*gaps, strict=True))
    sparsities.sort()
    backends.sort(key=_REPAIRED.index)
    widest = max(abs(gap.value) for gap in gaps.values()) or 1.0
    figure, axes = grid(len(backends), 1, 0.7 + 0.32 * len(models), DOUBLE, sharex=True)
    for axis, backend in zip(axes.flat, backends, strict=True):
        values = np.full((len(models), len(sparsities)), np.nan)
        for (model, sparsity, of_backend), gap in gaps.items():
            if of_backend == backend:
                row, column = models.index(model), sparsities.index(sparsity)
                values[row, column] = gap.value
                error = f"\n± {gap.stderr:.1f}" if math.isfinite(gap.stderr) else ""
                axis.text(column, row, f"{gap.value:+.1f}{error}", ha="center", va="center", fontsize=6.5,
                          fontweight="bold" if clear(gap) else "normal",
                          color="white" if abs(gap.value) > 0.65 * widest else BLACK)  # fmt: skip
        # orange and purple stay apart for colour-blind readers, and in print
        axis.imshow(values, cmap="PuOr_r", norm=TwoSlopeNorm(0.0, -widest, widest), aspect="auto")
        axis.set_yticks(range(len(models)), models)
        axis.set_xticks(range(len(sparsities)), [percent(each) for each in sparsities])
        axis.grid(False)
        axis.set_title(f"{text.value('backend', backend)}: ERK less LAMP (points)")
    axes.flat[-1].set_xlabel("Sparsity")
    return figure


def density(view: View, rows: DataFrame) -> Drawing:
    """Density and relative repairability of every layer over depth at the highest sparsity, one line per allocation."""
    panels = []
    frames = {
        "Density": per_layer(rows, "layer_density", str(view)),
        "Residual / raw distortion": per_layer(rows, "relative_repairability", str(view)),
    }
    for model in values_of(frames["Density"], "model"):
        for label, every in frames.items():
            frame, title = _highest(every, model)
            # of several seeds and backends of one pruned network the values are the same, or are averaged
            series = _over_depth(frame, "mean", "-")
            panels.append(Panel(title, series, "Depth (layer)", label, log_y=label == "Density", counts="value"))
    return Drawing(view, panels, rows, height=1.9)


def transition(view: View, rows: DataFrame) -> Drawing:
    """Gains over recalibration against sparsity, and the variances that norms read over depth; rows are networks."""
    points = transitions(rows, str(view))
    frames = [per_layer(rows, metric, str(view)) for metric in ("least_variance", "median_variance")]
    least, median = (frame[frame["backend"] == RECALIBRATED] for frame in frames)
    panels = []
    for model in values_of(least, "model"):
        epsilon = next(point.epsilon for point in points if point.model == model)
        gains = []
        for name, look in _looks(values_of(least, "allocation")).items():
            line = [
                (100 * point.sparsity, point) for point in points if (point.model, point.allocation) == (model, name)
            ]
            gains.append(Series(text.value("allocation", name), [(x, point.gain) for x, point in line], look, "-"))
            controls = [(x, Estimate(point.control.value)) for x, point in line if point.control is not None]
            gains.append(Series("", controls, look, hollow=True))
        panels.append(Panel(model, gains, "Sparsity (%)", "Gain over recalibration\n(points of accuracy)",
                            [Level("", 0.0, Look(GREY), "-", False)], limits=(-1.0, 1.0), log_y=False))  # fmt: skip
        frame, title = _highest(least, model)
        variances = [*_over_depth(frame, "min", "-"), *_over_depth(_highest(median, model)[0], "min", DOTS)]
        label = "Least and median variance\nof the channels of a norm"
        level = Level("Epsilon of the norms", epsilon, said=False)
        panels.append(Panel(title, variances, "Depth (norm)", label, [level], counts="value"))
    keys = (Series(text.value("backend", CONTROL), [], Look(GREY, "o"), hollow=True),
            Level("Median of the channels", 0, Look(GREY), DOTS))  # fmt: skip
    return Drawing(view, panels, rows, height=1.9, keys=keys)


def _looks(allocations: Sequence[str]) -> dict[str, Look]:
    return dict(zip(allocations, SERIES, strict=False))


def _highest(frame: DataFrame, model: str) -> tuple[DataFrame, str]:
    """The rows of a network at its highest sparsity, and what both are called."""
    frame = frame[frame["model"] == model]
    highest = float(frame["sparsity"].max())
    return frame[frame["sparsity"] == highest], f"{model}, {percent(highest)}"


def _over_depth(frame: DataFrame, what: str, line: Line) -> list[Series]:
    """A line per allocation: the mean or the least of each layer. Dotted lines have no marks and no key."""
    series = []
    for name, look in _looks(values_of(frame, "allocation")).items():
        values = frame[frame["allocation"] == name].groupby("step")["value"].agg(what)
        points = [(float(str(step)), Estimate(float(value))) for step, value in values.items()]
        key = text.value("allocation", name) if line == "-" else ""
        series.append(Series(key, points, look if key else Look(look.colour), line, size=3))
    return series


# --- verdicts --------------------------------------------------------------------------------------------------------


def allocation_matters(view: str, rows: DataFrame) -> Iterator[Case]:
    known = accuracies(rows, view)
    models, sparsities = (values_of(known.pruned, axis) for axis in ("model", "sparsity"))
    for model in models:
        gaps = {each: gap for each in sparsities if (gap := known.erk_less_lamp(model, each, MATCHED)) is not None}
        if gaps:
            signs = {gap.value > 0 for gap in gaps.values() if clear(gap)}
            numbers = ", ".join(f"{percent(sparsity)} {signed(gap)}" for sparsity, gap in gaps.items())
            outcome = HOLDS if len(signs) == 2 else PARTLY if signs else FAILS
            seeds = min(gap.runs for gap in gaps.values())
            yield Case(model, outcome, f"ERK less LAMP in points: {numbers}", seeds)


def repair_recovers(view: str, rows: DataFrame) -> Iterator[Case]:
    for (model, name), group in groupby(transitions(rows, view), lambda point: (point.model, point.allocation)):
        points = list(group)
        clearly = [point for point in points if point.recovers]
        own = [point for point in clearly if point.control is not None and not point.escapes]
        best = max(clearly or points, key=lambda point: point.gain.value)
        epsilon = "was not measured" if best.control is None else signed(best.control)
        numbers = (
            f"{percent(best.sparsity)} gains {signed(best.gain)} points (repair {best.repair}); the smaller epsilon "
            f"{epsilon}; the least variance that a norm reads is {best.variance:.2g}, "
            f"{text.printed(best.variance / best.epsilon)} × epsilon"
        )
        outcome = HOLDS if own else PARTLY if clearly else FAILS
        where = f"{model}, {text.value('allocation', name)}"
        yield Case(where, outcome, numbers, min(point.gain.runs for point in points))
