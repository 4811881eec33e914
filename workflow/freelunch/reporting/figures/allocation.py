"""ERK less LAMP: the difference in accuracy after each repair, by network and sparsity."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from pandas import DataFrame

from freelunch.errors import FreelunchError
from freelunch.reporting import charts, claims, findings, labels, style
from freelunch.reporting.accuracies import (
    MATCHED,
    PAIR,
    RECALIBRATED,
    accuracies,
    clear,
    difference,
    percent,
    present,
    told,
)
from freelunch.reporting.estimates import Estimate, suite

_VIEW = "figure allocation"
_SHOWN = (RECALIBRATED, MATCHED, "reconstruct")


@style.applied()
def draw(rows: DataFrame) -> Figure:
    """A heat map for each backend: networks by sparsities, in points of accuracy; what is clear is bold.

    Raises:
        FreelunchError: no classifier was pruned under both allocations.
    """
    frame, models, sparsities, cells = _cells(rows)
    shown = [backend for backend in present(frame, "backend") if backend in _SHOWN]
    widest = max((abs(cell.value) for cell in cells.values()), default=1.0) or 1.0
    height = 0.7 + 0.32 * len(models)
    figure, grid = style.grid(len(shown), 1, height, width=style.DOUBLE, sharex=True)
    for (axis,), backend in zip(grid, shown, strict=True):
        values = np.full((len(models), len(sparsities)), np.nan)
        for i, model in enumerate(models):
            for j, sparsity in enumerate(sparsities):
                cell = cells.get((model, sparsity, backend))
                if cell is None:
                    continue
                values[i, j] = cell.value
                weight = "bold" if clear(cell) else "normal"
                dark = abs(cell.value) > 0.65 * widest
                axis.text(j, i, _text(cell), ha="center", va="center", fontsize=6.5, fontweight=weight,
                          color="white" if dark else style.BLACK)  # fmt: skip
        # orange and purple stay apart for colour-blind readers, and in print
        axis.imshow(values, cmap="PuOr_r", norm=TwoSlopeNorm(0.0, -widest, widest), aspect="auto")
        axis.set_yticks(range(len(models)), models)
        axis.set_xticks(range(len(sparsities)), [percent(each) for each in sparsities])
        axis.grid(False)
        axis.set_title(f"{labels.value('backend', backend)}: ERK less LAMP (points)")
    style.label_columns(grid, "Sparsity")
    charts.note(figure, _statement(frame, models, sparsities, cells))
    return figure


def caption(rows: DataFrame) -> str:
    """The claim, and the differences after the repair."""
    return _statement(*_cells(rows))


def _cells(
    rows: DataFrame,
) -> tuple[DataFrame, list[str], list[float], dict[tuple[str, float, str], Estimate]]:
    frame = accuracies(rows, _VIEW)
    models, sparsities = present(frame, "model"), present(frame, "sparsity")
    cells = {}
    for model in models:
        for sparsity in sparsities:
            for backend in _SHOWN:
                at = {"model": model, "sparsity": sparsity, "backend": backend}
                found = difference(frame, *({**at, "allocation": allocation} for allocation in PAIR))
                if found is not None:
                    cells[model, sparsity, backend] = found
    if not cells:
        raise FreelunchError(f"{_VIEW} needs classifiers pruned with erk and with lamp; suite {suite(rows)} has none")
    models = [model for model in models if any(key[0] == model for key in cells)]
    return frame, models, [each for each in sparsities if any(key[1] == each for key in cells)], cells


def _text(cell: Estimate) -> str:
    error = f"\n± {cell.stderr:.1f}" if np.isfinite(cell.stderr) else ""
    return f"{cell.value:+.1f}{error}"


def _statement(
    frame: DataFrame, models: list[str], sparsities: list[float], cells: dict[tuple[str, float, str], Estimate]
) -> str:
    sentences = []
    for model in models:
        backend = MATCHED if any(key[0] == model and key[2] == MATCHED for key in cells) else RECALIBRATED
        values = [(percent(each), cells.get((model, each, backend))) for each in sparsities]
        ahead = {"ERK": 0, "LAMP": 0}
        for _, cell in values:
            if cell is not None and clear(cell):
                ahead["ERK" if cell.value > 0 else "LAMP"] += 1
        counted = ", ".join(f"{name} clearly ahead at {count}" for name, count in ahead.items())
        sentences.append((model, f"{told(values)} ({counted} of {sum(cell is not None for _, cell in values)})"))
    return claims.statement("allocation", "ERK less LAMP after repair, in points. " + findings.joined(sentences))
