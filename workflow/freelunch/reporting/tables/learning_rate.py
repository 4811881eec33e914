"""Which learning rate and number of epochs is selected by what, how good it is, and what finding it took."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
from pandas import DataFrame

from freelunch.reporting.compared import assembled, levelled
from freelunch.reporting.estimates import Estimate, missing, summary
from freelunch.reporting.sweeps import sweeps
from freelunch.reporting.table import Column, Table

_OWN = ("selection", "learning_rate", "epochs")


def build(rows: DataFrame) -> Table:
    """Selected by validation and by test perplexity, at the cost of the sweep; found by search, at its own.

    Raises:
        FreelunchError: as ``sweeps.sweeps``.
    """
    found = sweeps(rows, "table learning_rate")
    runs = pd.concat([sweep.group.runs for sweep in found])
    shared = tuple(axis for axis in levelled(runs, ()) if axis not in _OWN)
    lines: dict[tuple[Any, ...], tuple[Estimate | None, ...]] = {}
    for sweep in found:
        key = tuple(sweep.group.setting[axis] for axis in shared)
        for choice in sweep.choices():
            told = (choice.by, choice.point.learning_rate, choice.point.epochs)
            lines[missing((*key, *told))] = (
                choice.point.test,
                choice.point.validation,
                Estimate(choice.seconds, runs=choice.runs),
                Estimate(choice.runs, runs=choice.runs),
                sweep.group.baseline(),
                summary(sweep.group.dense),
            )
    columns = ("validation_perplexity", "seconds", "trials")
    table = assembled("learning_rate", runs, "Learning rates", (*shared, *_OWN), lines, columns)
    whole = {"seconds": Column("seconds", "Time of all runs (s)"), "trials": Column("trials", "Runs", "count")}
    return replace(table, columns=tuple(whole.get(column.name, column) for column in table.columns))
