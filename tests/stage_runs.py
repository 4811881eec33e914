"""The tiny suite's config, to be changed and planned, and its stages run as functions, without Snakemake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from freelunch.plan.config import ExecutionConfig, parse_config
from freelunch.plan.plan import Plan, make_plan, walk
from freelunch.plan.spec import Spec
from freelunch.plan.yaml_files import read_yaml
from freelunch.results.artifacts import Artifact
from freelunch.results.stage import Stage
from freelunch.stages import function_of

ROOT = Path(__file__).parents[1]
EXECUTION = ExecutionConfig(device="cpu", stream_tokens=128)


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


def run(
    spec: Spec, root: Path, execution: ExecutionConfig = EXECUTION, code: str = "code", max_gib: float = 1.0,
    **options: Any,
) -> Artifact:  # fmt: skip
    """Run one stage, whatever is there already; ``options`` are those of its function."""
    function_of(spec)(Stage(spec, root, execution, code, max_gib), **options)
    return Artifact(root / spec.folder, spec)


def upstream(spec: Spec) -> list[Spec]:
    """All that a stage builds on, each once, in an order in which they can be run."""
    return list({above.manifest: above for above in walk(spec) if above is not spec}.values())


def prepare(spec: Spec, root: Path, execution: ExecutionConfig = EXECUTION, max_gib: float = 1.0) -> None:
    """Run what a stage builds on, if it is not there yet."""
    for above in upstream(spec):
        if not (root / above.manifest).exists():
            run(above, root, execution, max_gib=max_gib)


def need(spec: Spec, root: Path) -> Artifact:
    """A stage and all that it builds on, each run if it is not there yet."""
    prepare(spec, root)
    return Artifact(root / spec.folder, spec) if (root / spec.manifest).exists() else run(spec, root)
