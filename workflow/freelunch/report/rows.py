"""Tidy rows: one per run and metric, with the whole protocol in columns. Every table and figure is a view of them.

A metric of a run is identified by :data:`IDENTITY`; all columns outside :data:`MEASURED` describe the run and are the
same in all its rows. ``seconds`` and ``peak_gib`` are the cost of pruning and recovering, not of measuring.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pandas import DataFrame, Series

from freelunch.errors import FreelunchError, suggest
from freelunch.results.artifacts import replacing

COLUMNS = (
    "suite", "run", "model", "family", "trained_on", "model_revision", "parameters", "calibration",
    "calibration_tokens", "seed", "criterion", "pattern", "sparsity", "achieved_sparsity", "allocation",
    "refinement", "prune_inputs", "recovery", "window", "flow", "parametrization", "targets", "repair",
    "backend", "loss", "optimizer", "learning_rate", "schedule", "warmup", "epochs", "batch_size",
    "accumulation", "clip", "patience", "training_sequences", "training_tokens", "search_tokens",
    "trainable_parameters", "sequences", "calibration_images", "validation_sequences", "sampling", "metric",
    "dataset", "split", "length", "position", "step", "value", "stderr", "seconds", "peak_gib", "device",
    "versions",
)  # fmt: skip
_COUNTS = frozenset({
    "parameters", "calibration_tokens", "seed", "epochs", "batch_size", "accumulation", "patience",
    "training_sequences", "training_tokens", "search_tokens", "trainable_parameters", "sequences",
    "calibration_images", "validation_sequences", "length", "step",
})  # fmt: skip
_NUMBERS = frozenset({
    "sparsity", "achieved_sparsity", "warmup", "clip", "value", "stderr", "seconds", "peak_gib",
})  # fmt: skip
DTYPES = {name: "Int64" if name in _COUNTS else "float64" if name in _NUMBERS else "str" for name in COLUMNS}
"""Columns and dtypes; counts are nullable integers, so that they are written as integers where some are missing.

``learning_rate`` is text: a number as ``%g`` writes it, or ``auto``. ``parameters`` are those of the dense model.
``family`` is missing where the config gives a model none. ``trained_on`` is the data set of the config on which the
pipeline trained the model from random weights, if it did.
"""

IDENTITY = ("suite", "run", "metric", "dataset", "split", "length", "position", "step")
MEASURED = frozenset({"metric", "dataset", "split", "length", "position", "step", "value", "stderr"})


def to_frame(records: Sequence[Mapping[str, Any]]) -> DataFrame:
    """Rows with fixed columns, dtypes and order, whatever the order of the records; columns not given are missing.

    Raises:
        FreelunchError: a column is unknown, a value is not of its column's type, a metric of a run is given twice, or
            the rows of one run describe it differently.
    """
    for unknown in sorted({str(name) for record in records for name in record} - set(COLUMNS)):
        raise FreelunchError(f"rows have no column {unknown!r}; {suggest(unknown, COLUMNS)}")
    columns = {name: _column(name, [record.get(name) for record in records]) for name in COLUMNS}
    frame = DataFrame(columns, columns=list(COLUMNS))
    _check(frame)
    order = DataFrame({name: _sortable(frame[name]) for name in IDENTITY})
    order = order.sort_values(list(IDENTITY), kind="stable", na_position="first")
    return frame.loc[order.index].reset_index(drop=True)


def read_rows(path: Path) -> DataFrame:
    """Read ``rows.csv`` or ``rows.parquet``; both give the same frame.

    Raises:
        FreelunchError: the file cannot be read or was altered, or its columns are not those of rows.
    """
    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path, page_checksum_verification=True)
        else:
            # "none" and "None" are values here; only an empty field is missing
            dtypes: Any = DTYPES
            frame = pd.read_csv(path, dtype=dtypes, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise FreelunchError(f"cannot read {path}: {error}; delete it to have it made again") from None
    if tuple(frame.columns) != COLUMNS:
        different = sorted(set(frame.columns) ^ set(COLUMNS)) or ["their order"]
        raise FreelunchError(f"{path}: these are not the columns of rows; different: {', '.join(different)}")
    return frame.astype(DTYPES)


def write(frame: DataFrame, path: Path) -> None:
    """Write rows as CSV or Parquet, by the suffix of ``path``: equal rows, equal bytes."""
    with replacing(path) as part:
        if path.suffix == ".parquet":
            # tables and figures are drawn from this file, and no manifest vouches for it
            frame.to_parquet(part, index=False, write_page_checksum=True)
        else:
            frame.to_csv(part, index=False, lineterminator="\n")


def plain(frame: DataFrame) -> DataFrame:
    """Rows with words and counts as Python objects, and NaN where they are missing: quick to slice, to group and to
    compare, which views do again and again. What is measured stays ``float64``."""
    if frame["suite"].dtype == object:
        return frame
    columns = {
        name: column if DTYPES.get(str(name)) == "float64" else column.astype(object).where(column.notna(), math.nan)
        for name, column in frame.items()
    }
    return DataFrame(columns, index=frame.index).copy()


def _column(name: str, values: list[Any]) -> Series[Any]:
    dtype: Any = DTYPES[name]
    values = [None if _missing(value) else value for value in values]
    if dtype == "str":
        # a window is a word or a number of blocks
        wrong = [value for value in values if value is not None and type(value) not in (str, int)]
        values = [None if value is None else str(value) for value in values]
    else:
        wrong = [value for value in values if isinstance(value, str)]
    try:
        if wrong:
            raise TypeError(f"found {wrong[0]!r}")
        return Series(pd.array(values, dtype=dtype), name=name)
    except (TypeError, ValueError) as error:
        raise FreelunchError(f"column {name}: not all values are {dtype} ({error})") from None


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, str) and value == "") or value != value


def _check(frame: DataFrame) -> None:
    twice = frame[frame.duplicated(list(IDENTITY))]
    if len(twice):
        first = {name: twice[name].iloc[0] for name in IDENTITY if pd.notna(twice[name].iloc[0])}
        raise FreelunchError(f"two rows of the same metric: {', '.join(f'{k} {v}' for k, v in first.items())}")
    about = [name for name in COLUMNS if name not in MEASURED and name not in ("suite", "run")]
    values = frame.groupby(["suite", "run"], dropna=False)[about].nunique(dropna=False)
    for name in about:
        for suite, run in values.index[values[name] > 1]:
            raise FreelunchError(f"suite {suite}, run {run}: rows differ in {name}, which describes the run")


def _sortable(column: Series[Any]) -> Series[Any]:
    """Text by its numbers (``9.mlp`` before ``10.mlp``), and by itself where those are equal."""
    if DTYPES[str(column.name)] != "str":
        return column
    padded = column.str.replace(r"\d+", lambda match: match[0].zfill(12), regex=True, flags=re.ASCII)
    return padded + "\0" + column
