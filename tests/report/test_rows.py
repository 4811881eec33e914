"""Rows: fixed columns and order, the same bytes for the same runs, nothing wrong taken in silence."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made import Record, everything

from freelunch.errors import FreelunchError
from freelunch.report import rows


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_rows_do_not_depend_on_order_and_survive_writing(tmp_path: Path, suffix: str) -> None:
    records = everything((0,)).records
    frame, again = rows.to_frame(records), rows.to_frame(records[::-1])
    pd.testing.assert_frame_equal(frame, again)
    assert tuple(frame.columns) == rows.COLUMNS
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == rows.DTYPES
    first, second = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    rows.write(frame, first)
    rows.write(again, second)
    assert first.read_bytes() == second.read_bytes()
    pd.testing.assert_frame_equal(rows.read_rows(first), frame)


def test_special_values_survive_csv(tmp_path: Path) -> None:
    base = {"suite": "s", "run": "r", "recovery": "none", "window": 3, "metric": "m"}
    values = [0.1 + 0.2, math.inf, math.nan, 1e6]
    frame = rows.to_frame([base | {"step": step, "value": value} for step, value in enumerate(values)])
    rows.write(frame, tmp_path / "rows.csv")
    again = rows.read_rows(tmp_path / "rows.csv")
    np.testing.assert_array_equal(again["value"].to_numpy(), values)
    assert list(again["recovery"]) == ["none"] * 4 and list(again["window"]) == ["3"] * 4
    assert again["dataset"].isna().all()


def test_positions_are_sorted_as_numbers() -> None:
    base = {"suite": "s", "run": "r", "metric": "matrix_sparsity", "value": 0.5}
    frame = rows.to_frame([base | {"position": position} for position in ("10.mlp", "9.mlp", "9.attention")])
    assert list(frame["position"]) == ["9.attention", "9.mlp", "10.mlp"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"perplexity": 3.0}, "no column 'perplexity'"), ({"lenght": 3}, "did you mean 'length'"),
        ({"value": "low"}, "column value"), ({"epochs": 1.5}, "column epochs"),
        ({"versions": {"torch": "2"}}, "column versions"), ({"value": 2.0}, "two rows of the same metric"),
        ({"metric": "other", "window": "block"}, "rows differ in window"),
    ],
)  # fmt: skip
def test_wrong_records_are_refused(change: Record, message: str) -> None:
    good = {"suite": "s", "run": "r", "metric": "m", "value": 1.0, "window": "attention_mlp"}
    with pytest.raises(FreelunchError, match=message):
        rows.to_frame([good, good | change])


def test_files_that_are_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FreelunchError, match="cannot read"):
        rows.read_rows(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(FreelunchError, match="not the columns of rows"):
        rows.read_rows(tmp_path / "other.csv")
