"""The tiny suite's config, to be changed and planned, and its stages run as functions, without Snakemake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from freelunch.plan.config import ExecutionConfig, parse_config
from freelunch.plan.plan import Plan, make_plan, walk
from freelunch.plan.spec import Spec
from freelunch.plan.yaml_files import read_yaml
from freelunch.results.artifacts import Artifact
from freelunch.results.stage import Stage
from freelunch.stages.calibrate import calibrate
from freelunch.stages.classifiers import train_classifier
from freelunch.stages.dense import dense
from freelunch.stages.evaluate import evaluate
from freelunch.stages.export import run_export
from freelunch.stages.grams import grams
from freelunch.stages.images import prepare_images
from freelunch.stages.prepare_data import prepare_data
from freelunch.stages.prepare_model import prepare_model
from freelunch.stages.prune import prune
from freelunch.stages.questions import questions
from freelunch.stages.reconstruct import reconstruct, shard
from freelunch.stages.repair import repair
from freelunch.stages.retrain import retrain
from freelunch.stages.sparse_classifiers import sparse_classifier

ROOT = Path(__file__).parents[1]
EXECUTION = ExecutionConfig(device="cpu", stream_tokens=128)
STAGES: dict[str, Callable[..., object]] = {
    "models": prepare_model, "data": prepare_data, "questions": questions, "calibration": calibrate,
    "dense": dense, "grams": grams,
    "pruned": prune, "shards": shard, "reconstructed": reconstruct, "retrained": retrain, "repaired": repair,
    "evaluation": evaluate, "export": run_export, "images": prepare_images, "classifiers": train_classifier,
    "sparse_classifiers": sparse_classifier,
}  # fmt: skip


def tiny_config() -> dict[str, Any]:
    """The parsed ``tests/tiny.yaml`` with the suite ``tiny`` alone, for a test to change.

    Its documents are found from any folder.
    """
    raw: dict[str, Any] = read_yaml(ROOT / "tests/tiny.yaml")
    raw["data"]["documents"]["path"] = str(ROOT / "tests/data/documents.jsonl")
    raw["images"]["stripes"]["path"] = str(ROOT / "tests/data/images")
    raw["suites"] = {"tiny": raw["suites"]["tiny"]}
    return raw


def tiny_plan(raw: dict[str, Any] | None = None) -> Plan:
    """The plan of a config, by default that of the tiny suite as it is."""
    return make_plan(parse_config(tiny_config() if raw is None else raw))


def subjects(plan: Plan) -> list[Any]:
    """Specs of the networks of the tiny suite but the dense one, in the order of its runs."""
    return [run.evaluation.subject for run in plan.runs["tiny"] if run.axes]


def run(spec: Spec, root: Path, execution: ExecutionConfig = EXECUTION, code: str = "code", **options: Any) -> Artifact:
    """Run one stage, whatever is there already; ``options`` are those of its function."""
    if spec.stage == "dense":
        options = {"max_gib": 1.0} | options
    STAGES[spec.stage](Stage(spec, root, execution, code), **options)
    return Artifact(root / spec.folder, spec)


def upstream(spec: Spec) -> list[Spec]:
    """All that a stage builds on, each once, in an order in which they can be run."""
    return list({above.manifest: above for above in walk(spec) if above is not spec}.values())


def prepare(spec: Spec, root: Path, execution: ExecutionConfig = EXECUTION, **options: Any) -> None:
    """Run what a stage builds on, if it is not there yet; ``options`` are those of the dense stage."""
    for above in upstream(spec):
        if not (root / above.manifest).exists():
            run(above, root, execution, **(options if above.stage == "dense" else {}))


def need(spec: Spec, root: Path) -> Artifact:
    """A stage and all that it builds on, each run if it is not there yet."""
    prepare(spec, root)
    return Artifact(root / spec.folder, spec) if (root / spec.manifest).exists() else run(spec, root)
