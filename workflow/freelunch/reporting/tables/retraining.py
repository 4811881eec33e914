"""Perplexity of reconstruction, retraining and repair by training tokens, and what they cost."""

from __future__ import annotations

from typing import Any

import pandas as pd
from pandas import DataFrame

from freelunch.reporting.compared import assembled, levelled
from freelunch.reporting.comparisons import Group
from freelunch.reporting.estimates import Estimate, missing, of, ordered, summary
from freelunch.reporting.retraining import SERIES, races
from freelunch.reporting.table import Table

_COLUMNS = ("operations", "seconds", "peak_gib")


def build(rows: DataFrame) -> Table:
    """What is not recovered, or repaired without training, has 0 training tokens.

    Raises:
        FreelunchError: as ``retraining.races``.
    """
    groups = races(rows, "table retraining")
    runs = pd.concat([part for group in groups for part in (group.alone, group.runs)])
    wanted = ["recovery", "loss", "parametrization", "training_tokens"]
    wanted += [axis for axis in SERIES if runs[axis].nunique() > 1]
    levels = tuple(axis for axis in levelled(runs, wanted) if axis in _told(groups) or axis in wanted)
    lines: dict[tuple[Any, ...], tuple[Estimate | None, ...]] = {}
    rivals = []
    for group in groups:
        here = pd.concat([group.alone, group.runs])
        for key in ordered(here, levels):
            at = of(here, levels, key)
            cells = (summary(at), *(summary(at, column) for column in _COLUMNS))
            lines[missing(key)] = (*cells, group.baseline(), summary(group.dense))
        rivals.append([missing(key) for key in ordered(group.runs, levels)])
    return assembled("retraining", runs, "Reconstruction and retraining", levels, lines, _COLUMNS, rivals)


def _told(groups: list[Group]) -> set[str]:
    """The axes of pruning and measuring; those of training follow from the training tokens."""
    return {axis for group in groups for axis in group.setting}
