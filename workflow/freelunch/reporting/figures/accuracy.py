"""Test accuracy against sparsity: before and after repairs without labels, by allocation."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame

from freelunch.reporting import charts, claims, findings, labels, style
from freelunch.reporting.accuracies import MATCHED, PAIR, RECALIBRATED, accuracies, mean, percent, present
from freelunch.reporting.estimates import Estimate

_VIEW = "figure accuracy"
_SHOWN = ("none", RECALIBRATED, MATCHED, "reconstruct")
"""Backends with a column; the others differ from these so little that the table is the place for them."""


@style.applied()
def draw(rows: DataFrame) -> Figure:
    """One line per allocation; rows of panels are networks, columns backends. The dense network is a dashed line.

    Raises:
        FreelunchError: no pruned classifier was measured.
    """
    frame = accuracies(rows, _VIEW)
    pruned = frame[frame["criterion"] != "dense"]
    models, allocations = present(frame, "model"), present(frame, "allocation")
    shown = [backend for backend in present(frame, "backend") if backend in _SHOWN] or present(frame, "backend")
    looks = {each: style.SERIES[place % len(style.SERIES)] for place, each in enumerate(allocations)}
    figure, grid = style.grid(len(models), len(shown), 1.75, width=style.DOUBLE, sharex="row", sharey=True)
    for row, model in zip(grid, models, strict=True):
        for axis, backend in zip(row, shown, strict=True):
            at = pruned[(pruned["model"] == model) & (pruned["backend"] == backend)]
            for allocation, look in looks.items():
                _line(axis, at[at["allocation"] == allocation], look)
            dense = mean(frame, model=model, criterion="dense")
            if dense is not None:
                charts.level(axis, dense.value, style.BLACK, charts.DASHES, said=backend == shown[-1])
            axis.set_title(labels.value("backend", backend))
            axis.set_ylim(0, 102)
        row[0].set_ylabel(f"{model}\nTest accuracy (%)")
    style.label_columns(grid, "Sparsity (%)")
    keys = [charts.key(labels.value("allocation", each), look, "-") for each, look in looks.items()]
    return charts.finish(figure, keys, _statement(frame), alone=False)


def _line(axis: Axes, runs: DataFrame, look: style.Look) -> None:
    points: list[tuple[float, Estimate]] = []
    for sparsity in sorted(runs["sparsity"].unique()):
        cell = mean(runs, sparsity=sparsity)
        if cell is not None:
            points.append((100 * sparsity, cell))
    charts.marks(axis, [x for x, _ in points], [cell for _, cell in points], look, "-")


def caption(rows: DataFrame) -> str:
    """What is claimed, and of every network what recalibration and repair make of it at the ends of the band."""
    return _statement(accuracies(rows, _VIEW))


def _statement(frame: DataFrame) -> str:
    pruned = frame[frame["criterion"] != "dense"]
    sentences = []
    for model in present(frame, "model"):
        at = pruned[pruned["model"] == model]
        allocations = [each for each in PAIR if each in set(at["allocation"])] or present(at, "allocation")[:2]
        parts = []
        for sparsity in _ends(present(at, "sparsity")):
            for allocation in allocations:
                cells = [
                    (labels.value("backend", backend).lower(), mean(at, sparsity=sparsity, allocation=allocation,
                                                                    backend=backend))
                    for backend in _SHOWN
                ]  # fmt: skip
                parts.append(f"{percent(sparsity)} {labels.value('allocation', allocation)}: {findings.listed(cells)}")
        dense = mean(frame, model=model, criterion="dense")
        sentences.append((model, f"dense {findings.shown(dense)}; " + "; ".join(parts)))
    return claims.statement("allocation", "accuracy in percent. " + findings.joined(sentences, most=2))


def _ends(values: list[float]) -> list[float]:
    return list(dict.fromkeys([values[0], values[-1]]))
