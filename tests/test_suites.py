"""Every table and figure that a suite of `config.yaml` names can be made from the rows that its runs have."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from freelunch import reporting
from freelunch.plan.config import parse_config
from freelunch.plan.plan import Plan, make_plan
from freelunch.plan.specs import EvaluationSpec
from freelunch.plan.yaml_files import read_yaml
from freelunch.reporting import rendering
from freelunch.reporting.report import Kind
from planned_rows import planned_rows


@cache
def plan() -> Plan:
    return make_plan(parse_config(read_yaml(Path(__file__).parents[1] / "config.yaml")))


@cache
def rows(suite: str) -> pd.DataFrame:
    return planned_rows(plan(), suite)


def views() -> list[Any]:
    # the grid of the paper is a thousand runs, whose views take minutes
    slow = {"paper": [pytest.mark.end_to_end]}
    return [
        pytest.param(name, kind, view, marks=slow.get(name, ()))
        for name, suite in plan().config.suites.items()
        if all(isinstance(run.evaluation, EvaluationSpec) for run in plan().runs[name])
        for kind, named in (("table", suite.tables), ("figure", suite.figures))
        for view in named
    ]


@pytest.mark.parametrize("suite, kind, view", views())
def test_what_a_suite_names_can_be_made(suite: str, kind: Kind, view: str) -> None:
    found = rows(suite)
    if kind == "table":
        built = reporting.tabulate(view, found)
        assert built.lines and "Protocol: " in built.about
        for ending in ("csv", "md", "tex"):
            assert rendering.render(built, ending)
    else:
        assert reporting.draw(view, found).axes
