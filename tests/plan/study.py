"""A config of one suite, to be changed and planned."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from freelunch.errors import FreelunchError
from freelunch.plan.config import parse_config
from freelunch.plan.plan import Plan, make_plan
from freelunch.plan.specs import ReconstructedSpec

SHA = "0123456789abcdef" * 4
SHAPE: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 320, "hidden_size": 60, "intermediate_size": 128,
    "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip
LARGER = SHAPE | {"hidden_size": 576, "num_attention_heads": 9, "max_position_embeddings": 8192}

BASE: dict[str, Any] = {
    "default_suite": "study",
    "models": {
        "small": {"random": {"seed": 0, "config": SHAPE}, "licence": ""},
        "wheeled": {
            "wheel": {"package": "some-package", "version": "1.0", "sha256": SHA, "member": "a/b.gguf"},
            "shape": LARGER,
        },
        "hubbed": {"hub": {"id": "owner/model", "revision": SHA[:40]}, "shape": LARGER},
    },
    "data": {
        "texts": {"path": "texts.jsonl", "splits": {"calibration": 0.5, "validation": 0.25, "test": 0.25}},
        "untested": {"path": "other", "splits": {"calibration": "train", "validation": "dev"}},
        "only_test": {"hub": {"id": "owner/data", "revision": SHA[:40]}, "splits": {"test": "test"}},
    },
    "dense": {"max_gib": 1},
    "execution": {"device": "cpu"},
    "suites": {
        "study": {
            "defaults": {"model": "small", "calibration": "texts", "length": 64, "sequences": 8},
            "runs": [{"criterion": "wanda", "pattern": "50%"}],
            "evaluate": [{"data": "texts", "length": 64}],
            "tables": ["perplexity"],
            "figures": ["gain"],
        }
    },
}
RUNS, FIRST, EVALUATE = "suites.study.runs", "suites.study.runs.0.", "suites.study.evaluate"
QUESTIONS = {"title": "title", "description": "line", "topic": "field"}
TRAIN: dict[str, Any] = {
    "config": SHAPE | {"num_key_value_heads": 2}, "data": "texts",
    "sequences": 16, "validation_sequences": 8, "length": 64, "batch_size": 4, "learning_rate": 0.01,
}  # fmt: skip


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """``BASE`` with values set at dotted paths."""
    raw = deepcopy(BASE)
    for path, value in changes.items():
        at: Any = raw
        *parents, last = path.split(".")
        for step in parents:
            at = at[int(step) if isinstance(at, list) else step]
        at[last] = value
    return raw


def plan_of(changes: dict[str, Any] | None = None) -> Plan:
    return make_plan(parse_config(changed(changes or {})))


def complaint(changes: dict[str, Any]) -> str:
    """What is said of a config that cannot be planned."""
    with pytest.raises(FreelunchError) as caught:
        plan_of(changes)
    return str(caught.value)


def subject(changes: dict[str, Any] | None = None, **axes: Any) -> Any:
    """The network of the last run, when the config and axes of the run are changed."""
    return plan_of((changes or {}) | {FIRST + axis: value for axis, value in axes.items()}).runs["study"][-1].subject


def reconstructed(changes: dict[str, Any] | None = None, **axes: Any) -> ReconstructedSpec:
    spec = subject(changes, **axes)
    assert isinstance(spec, ReconstructedSpec)
    return spec


def trained(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Changes to ``BASE`` that make the small model one that is trained; None removes a key."""
    train = {key: value for key, value in (TRAIN | (changes or {})).items() if value is not None}
    return {"models.small": {"train": train}}


def asked(**changes: Any) -> dict[str, Any]:
    """A zero-shot task."""
    return {"metric": "zero_shot", "tasks": ["boolq"]} | changes
