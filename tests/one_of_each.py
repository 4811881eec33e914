"""A spec of every stage, on a model as small as can be, for tests of what goes wrong in any of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from freelunch.plan.config import ExecutionConfig
from freelunch.plan.spec import STAGES, Spec
from freelunch.plan.specs import ExportSpec, ReconstructedSpec
from stage_runs import run, tiny_config, tiny_plan, upstream

SHARDED = ExecutionConfig(device="cpu", stream_tokens=128, shards=2)


def small_config() -> dict[str, Any]:
    """The config of the tiny suite, of two narrow blocks and few sequences, for a test to change."""
    raw = tiny_config()
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    raw["models"]["tiny"]["random"]["config"] |= small
    raw["suites"]["tiny"]["defaults"] |= {"sequences": 5, "validation_sequences": 2, "length": 24, "batch_size": 2}
    return raw


def one_of_each(shape: dict[str, Any] | None = None, dtype: str | None = None) -> dict[str, Spec]:
    """A spec of every stage, by the folder of the stage; ``shape`` is another config of the random model."""
    raw = small_config()
    model, suite = raw["models"]["tiny"], raw["suites"]["tiny"]
    model["random"]["config"] = shape or model["random"]["config"]
    if dtype is not None:
        model["dtype"] = dtype
    suite["runs"] = [
        {"criterion": "sparsegpt", "pattern": "2:4", "window": "block"},
        {"criterion": "wanda", "pattern": "50%", "recovery": "retrain", "loss": "kl"},
        {"criterion": "wanda", "pattern": "50%", "recovery": "repair", "repair": "shrink"},
    ]
    suite["evaluate"] = [
        {"data": "documents", "length": 24, "sequences": 4, "splits": ["test"]},
        {"metric": "zero_shot", "tasks": ["article_last_word"], "data": "documents", "limit": 2},
    ]
    classifier = {"classifier": "tiny", "images": "stripes", "calibration_images": 8, "allocation": "lamp"}
    raw["suites"]["classifiers_of"] = {"runs": [classifier]}
    plan = tiny_plan(raw)
    found: dict[str, Spec] = {}
    for item in [*plan.runs["tiny"][1:], *plan.runs["classifiers_of"]]:
        for spec in [*upstream(item.evaluation), item.evaluation]:
            found.setdefault(spec.stage, spec)
    reconstructed = found["reconstructed"]
    assert isinstance(reconstructed, ReconstructedSpec)
    found["shards"] = reconstructed.split(2)[0]
    found["exported"] = ExportSpec(subject=reconstructed)
    return {stage: found[stage] for stage in STAGES}


SPECS = one_of_each()
"""By the folder of their stage."""


def above(spec: Spec) -> list[Spec]:
    """What a stage reads: its upstream, and the shards of a reconstruction."""
    shards = spec.split(2) if isinstance(spec, ReconstructedSpec) else []
    return [*spec.upstream(), *shards]


def make_all(root: Path) -> None:
    """Run all of them, and what they read."""
    for spec in SPECS.values():
        for each in [*upstream(spec), *above(spec), spec]:
            if not (root / each.manifest).exists():
                run(each, root, SHARDED)
