"""Tables, figures and verdicts of the second paper: classifiers, ERK against LAMP, repair against recalibration.

Accuracies are in percent; all means and differences are over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from pandas import DataFrame

from freelunch.errors import FreelunchError
from freelunch.report import text
from freelunch.report.compare import Estimate, estimate, lacking, of, suite, values_of
from freelunch.report.plot import BLACK, DOTS, DOUBLE, GREY, SERIES, Drawing, Level, Line, Look, Panel, Series, grid
from freelunch.report.tables import Cell, Contest, Table
from freelunch.report.verdicts import FAILS, HOLDS, PARTLY, Case
from freelunch.report.views import View

SETTING = ("model", "sparsity", "allocation", "backend", "seed")
"""What tells the accuracies of a view apart."""
RECALIBRATED, CONTROL, MATCHED = "recalibrate", "recalibrate_epsilon", "shrink"
"""Backends that comparisons are about: recalibration layer by layer, the same with a much smaller epsilon, and the
repair by activation statistics."""
REPAIRS = ("channel", "layer", "shrink")
PAIR = ("erk", "lamp")
_REPAIRED = (RECALIBRATED, MATCHED, "reconstruct")
"""Backends with a panel; the others differ from these so little that the table is the place for them."""


def accuracies(rows: DataFrame, view: str) -> DataFrame:
    """Test accuracies in percent, of pruned classifiers and, with ``criterion`` dense, of those before pruning.

    A threshold over the whole network is the allocation ``global``.

    Raises:
        FreelunchError: no pruned classifier was measured, or runs differ in something else than :data:`SETTING`.
    """
    found = _with_global(rows[(rows["metric"] == "accuracy") & (rows["split"] == "test")])
    pruned = found[found["criterion"] != "dense"]
    if pruned.empty:
        raise lacking(view, "accuracies of pruned classifiers", rows)
    twice = pruned[pruned.duplicated(list(SETTING), keep=False)]
    if len(twice):
        told = ", ".join(f"{axis} {twice[axis].iloc[0]}" for axis in SETTING)
        raise FreelunchError(
            f"{view} compares runs of one criterion, kind of pattern and calibration; suite {suite(rows)} has "
            f"{twice['run'].nunique()} runs that are alike otherwise ({told}, …)"
        )
    return found.assign(value=100 * found["value"], stderr=100 * found["stderr"])


def per_layer(rows: DataFrame, metric: str, view: str) -> DataFrame:
    """A metric of every layer or norm of pruned classifiers; its place in the network, from 1, is ``step``.

    Raises:
        FreelunchError: no classifier was pruned.
    """
    found = _with_global(rows[(rows["metric"] == metric) & rows["backend"].notna()])
    if found.empty:
        raise lacking(view, "pruned classifiers", rows)
    return found


def mean(frame: DataFrame, **setting: Any) -> Estimate | None:
    """Mean of the rows with these values; None if there is none."""
    found = of(frame, setting)
    return estimate(list(found["value"]), list(found["stderr"])) if len(found) else None


def present(frame: DataFrame, axis: str) -> list[Any]:
    """The values of an axis among pruned classifiers, in reading order."""
    return values_of(frame[frame["criterion"] != "dense"], axis)


def difference(frame: DataFrame, first: dict[str, Any], second: dict[str, Any]) -> Estimate | None:
    """Mean over common seeds of the first less the second setting; None without a common seed.

    With one seed there is no error: both are the same network on the same images.
    """
    one, other = (of(frame, setting).groupby("seed")["value"].mean() for setting in (first, second))
    common = sorted(set(one.index) & set(other.index))
    return estimate([float(one[seed] - other[seed]) for seed in common]) if common else None


def erk_less_lamp(frame: DataFrame, **setting: Any) -> Estimate | None:
    """The difference between the allocations that the second paper compares."""
    return difference(frame, *({**setting, "allocation": allocation} for allocation in PAIR))


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
    """A network, pruned in one way.

    Attributes:
        recalibrated: accuracy after recalibration alone; None if it was not measured.
        dense: that of the dense network.
        repair: the backend among the repairs that gains most over recalibration.
        gain: its accuracy less that of recalibration alone.
        control: the gain of recalibration with a much smaller epsilon.
        variance: the least variance of any channel that a norm reads, over all seeds.
        epsilon: of the norms.
    """

    model: str
    allocation: str
    sparsity: float
    recalibrated: Estimate | None
    dense: Estimate | None
    repair: str
    gain: Estimate
    control: Estimate | None
    variance: float
    epsilon: float

    @property
    def recovers(self) -> bool:
        """Whether the repair is clearly better where recalibration leaves more than a point to be gained."""
        lost = self.recalibrated is None or self.dense is None or self.dense.value - self.recalibrated.value > 1
        return lost and self.gain.value > 0 and clear(self.gain)

    @property
    def escapes(self) -> bool:
        """Whether the smaller epsilon gains at least half as much: then the repair is an escape from epsilon.

        Without a control nothing is known of it.
        """
        return self.control is not None and self.control.value >= 0.5 * self.gain.value


def transitions(rows: DataFrame, view: str) -> list[Point]:
    """All pruned networks that were recalibrated and repaired, by network, allocation and sparsity.

    Raises:
        FreelunchError: no classifier was recalibrated and repaired, or as :func:`accuracies`.
    """
    frame = accuracies(rows, view)
    norms = rows[rows["metric"].isin(["least_variance", "epsilon"]) & (rows["backend"] == RECALIBRATED)]
    points = []
    for model in present(frame, "model"):
        for allocation in present(of(frame, {"model": model}), "allocation"):
            for sparsity in present(of(frame, {"model": model, "allocation": allocation}), "sparsity"):
                at = {"model": model, "allocation": allocation, "sparsity": sparsity}
                plain = {**at, "backend": RECALIBRATED}
                gains = {repair: difference(frame, {**at, "backend": repair}, plain) for repair in REPAIRS}
                known = {repair: gain for repair, gain in gains.items() if gain is not None}
                if not known:
                    continue
                best = max(known, key=lambda repair: known[repair].value)
                least = norms[norms["run"].isin(of(frame, plain)["run"])].groupby("metric")["value"].min()
                points.append(Point(
                    model, allocation, sparsity, mean(frame, **plain), mean(frame, model=model, criterion="dense"),
                    best, known[best], difference(frame, {**at, "backend": CONTROL}, plain),
                    float(least.get("least_variance", math.nan)), float(least.get("epsilon", math.nan)),
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
    frame = accuracies(rows, str(view))
    backends = present(frame, "backend")
    lines: list[tuple[tuple[Any, ...], tuple[Cell, ...]]] = []
    contests: list[Contest] = []
    for model in present(frame, "model"):
        dense = mean(frame, model=model, criterion="dense")
        lines.append(((model, "dense", None), (dense, *[None] * (len(backends) - 1))))
        for sparsity in present(of(frame, {"model": model}), "sparsity"):
            at, first = of(frame, {"model": model, "sparsity": sparsity}), len(lines)
            for allocation in present(at, "allocation"):
                cells = tuple(mean(at, allocation=allocation, backend=backend) for backend in backends)
                lines.append(((model, percent(sparsity), allocation), cells))
            rivals = range(first, len(lines))
            contests += [Contest([(line, column) for line in rivals], highest=True) for column in range(len(backends))]
    columns = {backend: f"{text.value('backend', backend)} (%)" for backend in backends}
    return Table(view, suite(rows), ("model", "sparsity", "allocation"), columns, lines, rows, contests=tuple(contests))


def accuracy(view: View, rows: DataFrame) -> Drawing:
    """Over sparsity, one line per allocation; rows of panels are networks, columns backends."""
    frame = accuracies(rows, str(view))
    every = present(frame, "backend")
    shown = [backend for backend in every if backend in ("none", *_REPAIRED)] or every
    panels = []
    for model in present(frame, "model"):
        dense = mean(frame, model=model, criterion="dense")
        for backend in shown:
            series = []
            for allocation, look in _looks(present(frame, "allocation")).items():
                at = of(frame, {"model": model, "backend": backend, "allocation": allocation})
                points = [(100 * sparsity, cell) for sparsity in present(at, "sparsity")
                          if (cell := mean(at, sparsity=sparsity))]  # fmt: skip
                series.append(Series(text.value("allocation", allocation), points, look, "-"))
            across = [Level("Dense", dense.value, said=backend == shown[-1])] if dense else []
            title = f"{model}\n{text.value('backend', backend)}"
            panels.append(
                Panel(title, series, "Sparsity (%)", "Test accuracy (%)", across, limits=(0, 100), log_y=False)
            )
    return Drawing(view, panels, rows, len(shown), 1.75)


def allocation(view: View, rows: DataFrame) -> Drawing:
    """A heat map for each backend: networks by sparsities, in points of accuracy; what is clear is bold."""
    frame = accuracies(rows, str(view))
    axes = ("model", "sparsity", "backend")
    keys = [key for key in product(*(present(frame, axis) for axis in axes)) if key[-1] in _REPAIRED]
    every = {key: erk_less_lamp(frame, **dict(zip(axes, key, strict=True))) for key in keys}
    gaps = {key: gap for key, gap in every.items() if gap is not None}
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
    frames = {metric: per_layer(rows, metric, str(view)) for metric in ("layer_density", "relative_repairability")}
    for model in present(frames["layer_density"], "model"):
        for metric, label in (("layer_density", "Density"), ("relative_repairability", "Residual / raw distortion")):
            frame = _highest(frames[metric], model)
            title = f"{model}, {percent(float(frame['sparsity'].iloc[0]))}"
            # of several seeds and backends of one pruned network the values are the same, or are averaged
            series = _over_depth(frame, "mean", "-")
            panels.append(Panel(title, series, "Depth (layer)", label, log_y=metric == "layer_density", counts="value"))
    return Drawing(view, panels, rows, height=1.9)


def transition(view: View, rows: DataFrame) -> Drawing:
    """Gains over recalibration against sparsity, and the variances that norms read over depth; rows are networks."""
    points = transitions(rows, str(view))
    frames = [per_layer(rows, metric, str(view)) for metric in ("least_variance", "median_variance")]
    least, median = (frame[frame["backend"] == RECALIBRATED] for frame in frames)
    panels = []
    for model in present(least, "model"):
        here = [point for point in points if point.model == model]
        gains = []
        for name, look in _looks(present(least, "allocation")).items():
            at = [point for point in here if point.allocation == name]
            gains.append(
                Series(text.value("allocation", name), [(100 * point.sparsity, point.gain) for point in at], look, "-")
            )
            controls = [
                (100 * point.sparsity, Estimate(point.control.value)) for point in at if point.control is not None
            ]
            gains.append(Series("", controls, look, hollow=True))
        panels.append(Panel(model, gains, "Sparsity (%)", "Gain over recalibration\n(points of accuracy)",
                            [Level("", 0.0, Look(GREY), "-", False)], limits=(-1.0, 1.0), log_y=False))  # fmt: skip
        frame = _highest(least, model)
        variances = [*_over_depth(frame, "min", "-"), *_over_depth(_highest(median, model), "min", DOTS)]
        epsilon = Level("Epsilon of the norms", here[0].epsilon, said=False)
        title = f"{model}, {percent(float(frame['sparsity'].iloc[0]))}"
        label = "Least and median variance\nof the channels of a norm"
        panels.append(Panel(title, variances, "Depth (norm)", label, [epsilon], counts="value"))
    keys = (Series(text.value("backend", CONTROL), [], Look(GREY, "o"), hollow=True),
            Level("Median of the channels", 0, Look(GREY), DOTS))  # fmt: skip
    return Drawing(view, panels, rows, height=1.9, keys=keys)


def _looks(allocations: Sequence[str]) -> dict[str, Look]:
    return dict(zip(allocations, SERIES, strict=False))


def _highest(frame: DataFrame, model: str) -> DataFrame:
    """The rows of a network at its highest sparsity."""
    frame = of(frame, {"model": model})
    return of(frame, {"sparsity": frame["sparsity"].max()})


def _over_depth(frame: DataFrame, what: str, line: Line) -> list[Series]:
    """A line per allocation: the mean or the least of each layer. Dotted lines have no marks and no key."""
    found = []
    for name, look in _looks(present(frame, "allocation")).items():
        values = frame[frame["allocation"] == name].groupby("step")["value"].agg(what)
        points = [(float(str(step)), Estimate(float(value))) for step, value in values.items()]
        key = text.value("allocation", name) if line == "-" else ""
        found.append(Series(key, points, look if key else Look(look.colour), line, size=3))
    return found


# --- verdicts --------------------------------------------------------------------------------------------------------


def allocation_matters(view: str, rows: DataFrame) -> Iterator[Case]:
    frame = accuracies(rows, view)
    for model in present(frame, "model"):
        every = [(sparsity, erk_less_lamp(frame, model=model, sparsity=sparsity, backend=MATCHED))
                 for sparsity in present(of(frame, {"model": model}), "sparsity")]  # fmt: skip
        gaps = [(sparsity, gap) for sparsity, gap in every if gap is not None]
        if gaps:
            signs = {gap.value > 0 for _, gap in gaps if clear(gap)}
            numbers = "ERK less LAMP in points: " + ", ".join(
                f"{percent(sparsity)} {signed(gap)}" for sparsity, gap in gaps
            )
            outcome = HOLDS if len(signs) == 2 else PARTLY if signs else FAILS
            yield Case(model, outcome, numbers, min(gap.runs for _, gap in gaps))


def repair_recovers(view: str, rows: DataFrame) -> Iterator[Case]:
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in transitions(rows, view):
        groups.setdefault((point.model, point.allocation), []).append(point)
    for (model, name), points in groups.items():
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
