"""What is generated from the config's classes is what is committed, and a schema that tells right from wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel

from freelunch.plan.config import Axes, config_type
from freelunch.plan.plan import RUN_KINDS
from freelunch.plan.yaml_files import read_yaml
from freelunch.reference import PAGES, sections

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "workflow/config.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


@pytest.mark.parametrize(
    ("page", "path"), [("config", "docs/configuration.md"), ("schema", "workflow/config.schema.json")]
)
def test_committed_files_are_what_the_command_prints(page: str, path: str) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == PAGES[page](), "run `make reference`"


def test_every_key_is_described() -> None:
    axes: list[type[BaseModel]] = [Axes, *(kind.axes for kind in RUN_KINDS.values())]
    known = {config_type(), *(section for _, section in sections()), *axes}
    assert {"Wheel", "Train", "ZeroShotTask", "ImagesConfig", "ClassifierAxes"} <= {each.__name__ for each in known}
    for section in known:
        for name, field in section.model_fields.items():
            assert field.description and not field.description.endswith("."), f"{section.__name__}.{name}"


def test_the_schema_is_one_and_takes_the_configs_that_come_with_the_project() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for name in ("config.yaml", "tests/tiny.yaml"):
        VALIDATOR.validate(read_yaml(ROOT / name))
    assert (
        (ROOT / "config.yaml").read_text().startswith("# yaml-language-server: $schema=workflow/config.schema.json\n")
    )


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("suits", {}),
        ("models.llama-3m.train.epochs", 0),
        ("models.a b", {"path": "x"}),
        ("models.x", {"hub": {"id": "a/b", "revision": "main"}}),
        ("data.wikipedia.splits", {"calibration": 0.5, "tests": 0.5}),
        ("execution.device", "gpu"),
        ("defaults.criterion", ["wanda", 3]),
        ("suites.demo.runs", [{"criterium": "wanda"}]),
        ("suites.demo.runs", [{"pattern": 124}]),
        ("suites.demo.runs", [{"flow": ["dense", "sparse"]}]),
        ("suites.vision.runs", [{"classifier": "resnet18", "images": "mnist", "backends": ["all"]}]),
        ("suites.demo.evaluate", [{"metric": "accuracy", "data": "wikipedia"}]),
        ("suites.demo.evaluate", [{"data": "wikipedia", "only": {"seed": [-1]}}]),
        ("suites.demo.tables", ["perplexty"]),
    ],
    ids=str,
)
def test_the_schema_refuses_what_is_wrong(path: str, value: Any) -> None:
    raw = read_yaml(ROOT / "config.yaml")
    *parents, last = path.split(".")
    at = raw
    for step in parents:
        at = at[step]
    at[last] = value
    assert not VALIDATOR.is_valid(raw)
