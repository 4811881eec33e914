"""Published numbers: ``workflow/references/*.csv``, one file per source, every row with where it was read."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from freelunch.errors import FreelunchError

if TYPE_CHECKING:
    from pandas import DataFrame

REFERENCES = Path(__file__).parents[2] / "references"
COLUMNS = ("source", "model", "criterion", "pattern", "recovery", "dataset", "length", "metric", "value")
"""``metric`` is ``ppl``, or that of a task as a fraction; ``length`` is empty for tasks."""


@cache
def references(folder: Path = REFERENCES) -> DataFrame:
    """All published numbers; what is empty is missing.

    Raises:
        FreelunchError: a file has other columns, a value or length that is no number, or a row without a source.
    """
    import pandas as pd

    frames = []
    for path in sorted(folder.glob("*.csv")):
        frame = pd.read_csv(path, dtype="str", keep_default_na=False, na_values=[""])
        if tuple(frame.columns) != COLUMNS:
            raise FreelunchError(f"{path}: its columns are not {', '.join(COLUMNS)}")
        if frame[["source", "model", "metric", "value"]].isna().any(axis=None):
            raise FreelunchError(f"{path}: a row lacks its source, model, metric or value")
        try:
            frames.append(frame.astype({"value": "float64", "length": "float64"}).astype({"length": "Int64"}))
        except ValueError as error:
            raise FreelunchError(f"{path}: {error}") from None
    if not frames:
        raise FreelunchError(f"{folder}: there are no published numbers (*.csv)")
    return pd.concat(frames, ignore_index=True)
