"""Gaps between criteria before and after recovery, by the size of the model."""

from __future__ import annotations

from typing import Any

from pandas import DataFrame

from freelunch.reporting.comparisons import varying
from freelunch.reporting.estimates import suite
from freelunch.reporting.scales import ALIKE, SIDES, scales
from freelunch.reporting.table import Column, Line, Table

_LABELS = {"before": "Gap before recovery (nats)", "after": "Gap after recovery (nats)"}


def build(rows: DataFrame) -> Table:
    """One line per series, model and criterion; the best criterion of a model has the gap 0.

    Raises:
        FreelunchError: as ``scales.scales``.
    """
    found = scales(rows, "table scale")
    differing = varying(scale.setting for scale in found)
    always = [axis for axis in ALIKE if axis in ("dataset", "length", "pattern", "window") and axis not in differing]
    shown = [axis for axis in ALIKE if axis in (*always, *differing) and axis in found[0].setting]
    constants: dict[str, Any] = {axis: found[0].setting[axis] for axis in ("dataset", "length") if axis in always}
    shown = [axis for axis in shown if axis not in constants]
    lines: list[Line] = []
    for scale in found:
        for point in scale.points:
            for name in scale.criteria:
                key = (*(scale.setting[axis] for axis in shown), point.parameters, point.model, name)
                lines.append((key, tuple(point.gaps[side][name] for side in SIDES)))
    on = " on " + str(constants["dataset"]) if "dataset" in constants else ""
    title = (
        f"Logarithm of the test perplexity{on} over that of the best criterion, by the model's size; lower is better."
    )
    levels = (*shown, "parameters", "model", "criterion")
    columns = tuple(Column(f"gap_{side}", _LABELS[side]) for side in SIDES)
    return Table("scale", suite(rows), title, levels, columns, lines, constants)
