"""Values of any kind for Hypothesis to try, and what may come of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from freelunch.errors import FreelunchError
from freelunch.plan.config import AXES

FUZZED = settings(
    max_examples=int(os.environ.get("FREELUNCH_FUZZ", "60")), deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates()
    | st.sampled_from(["50%", "2:4", "wanda", "auto", "1e400", "block", "path", "../x", "-1", "nan", "full + norms"])
)  # fmt: skip
KEYS = (
    st.text(max_size=8) | st.sampled_from(["path", "hub", "splits", "runs", "metric", "model", *AXES]) | st.integers()
)
VALUES = st.recursive(
    SCALARS, lambda below: st.lists(below, max_size=4) | st.dictionaries(KEYS, below, max_size=4), max_leaves=8
)


def json_of(value: Any) -> str:
    """JSON of any value; dates are text."""
    return json.dumps(value, default=str)


@contextmanager
def only_foreseen() -> Iterator[None]:
    """A failure is one that a user reads: it says something, and not for pages."""
    try:
        yield
    except FreelunchError as error:
        assert str(error).strip() and len(str(error)) < 20_000
