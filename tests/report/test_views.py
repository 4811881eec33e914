"""Every table and figure that a suite of `config.yaml` names can be made from the rows that its runs have."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from planned_rows import planned_rows

from freelunch.plan.config import parse_config
from freelunch.plan.plan import Plan, make_plan
from freelunch.plan.specs import EvaluationSpec
from freelunch.plan.yaml_files import read_yaml
from freelunch.report import plot, render, text, views
from freelunch.report.verdicts import UNTESTED, verdicts
from freelunch.report.views import RULES

ROOT = Path(__file__).parents[2]


@cache
def plan() -> Plan:
    return make_plan(parse_config(read_yaml(ROOT / "config.yaml")))


@cache
def rows(suite: str) -> pd.DataFrame:
    return planned_rows(plan(), suite)


def named() -> list[Any]:
    # the grid of the paper is a thousand runs, whose views take minutes
    slow = {"paper": [pytest.mark.end_to_end]}
    return [
        pytest.param(name, kind, view, marks=slow.get(name, ()))
        for name, suite in plan().config.suites.items()
        if all(isinstance(run.evaluation, EvaluationSpec) for run in plan().runs[name])
        for kind, wanted in (("table", suite.tables), ("figure", suite.figures))
        for view in wanted
    ]


@pytest.mark.parametrize("suite, kind, view", named())
def test_what_a_suite_names_can_be_made(suite: str, kind: views.Kind, view: str) -> None:
    if kind == "table":
        table = views.table(view, rows(suite))
        assert table.lines and render.about(table)[-1].startswith("Protocol: ")
        assert render.csv(table) and render.markdown(table) and render.latex(table)
    else:
        drawing = views.figure(view, rows(suite))
        axes = plot.draw(drawing).axes
        assert axes and render.caption(drawing.view, drawing.runs)[-1].startswith("Protocol: ")
        shown = [axis.get_title() for axis in axes if axis.axison and axis.get_title()]
        models = set(rows(suite)["model"])
        assert shown and all(any(model in re.sub(r"\s", " ", title) for model in models) for title in shown)


def test_a_further_figure_of_a_comparison_is_one_declaration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "FIGURES", dict(views.FIGURES))
    views.register("figure", "criteria_again", views.View("report.figures:categories", "criterion", reading="compared"))
    drawing = views.figure("criteria_again", rows("scale"))
    assert plot.draw(drawing).axes
    assert "Runs that are compared" in render.caption(drawing.view, drawing.runs)[0]


def test_all_views_and_claims_have_words_and_are_in_the_documentation() -> None:
    documented = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    for view in (*views.TABLES.values(), *views.FIGURES.values()):
        words = text.TEXT["views"][view.name]
        assert words["title"] and words["shows"] and f"| `{view.name}` |" in documented
        assert not view.claim or text.claim(view.claim)
        assert not view.reading or {f"{view.reading}_{view.kind}", view.reading} & set(text.TEXT["reading"])
    assert {name for name, about in text.TEXT["claims"].items() if "rule" in about} == set(RULES)
    for name in RULES:
        (verdict,) = [each for each in verdicts(rows("demo")) if each.name == name]
        assert verdict.rule and verdict.source in text.TEXT["papers"] and verdict.reason
        assert bool(verdict.cases) == (verdict.outcome != UNTESTED)


def test_checking_the_config_imports_nothing_heavy() -> None:
    code = "import sys, freelunch.vision; print({'pandas', 'matplotlib', 'numpy'} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "workflow", capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "set()"
