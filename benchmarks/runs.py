"""What benchmarks share: stages run in processes of their own, on random-weight models with the demo's settings."""

from __future__ import annotations

import json
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from freelunch.__main__ import load
from freelunch.plan.config import DataConfig, ExecutionConfig, ModelConfig
from freelunch.plan.config import Random as RandomModel
from freelunch.plan.facts import Facts, facts_of
from freelunch.plan.spec import Spec, parse_spec
from freelunch.plan.specs import CalibrationSpec, DataSpec, DenseSpec, ModelSpec, PrunedSpec, ReconstructedSpec


def the_demo() -> tuple[ReconstructedSpec, Facts, ExecutionConfig]:
    """The first reconstruction of the default suite, the shape of its model, and how jobs run."""
    plan = load([Path("config.yaml")])
    subjects = [run.subject for run in plan.runs[plan.config.default_suite]]
    demo = next(subject for subject in subjects if isinstance(subject, ReconstructedSpec))
    return demo, facts_of(plan.config, demo.pruned.dense.calibration.model.model), plan.config.execution


def random_dense(demo: ReconstructedSpec, facts: Facts, depth: int, root: Path) -> DenseSpec:
    """The demo's dense pass on a random model of its widths and of ``depth`` blocks, on random words."""
    model = random_model(facts, depth)
    splits: Any = {"calibration": 0.5, "validation": 0.25, "test": 0.25}
    data = DataSpec(data="words", source=DataConfig(path=str(root / "text.jsonl"), splits=splits))
    old = demo.pruned.dense.calibration
    calibration = CalibrationSpec(
        model=model, data=data, sequences=old.sequences, validation_sequences=old.validation_sequences,
        length=old.length, sampling="packed", seed=0,
    )  # fmt: skip
    return DenseSpec(calibration=calibration)


def random_model(facts: Facts, depth: int) -> ModelSpec:
    """A model of random weights, of some widths and of ``depth`` blocks."""
    shape = facts.model_dump(exclude={"mlp_matrices"}) | {"num_hidden_layers": depth}
    return ModelSpec(model=f"random-{depth}", source=ModelConfig(random=RandomModel(config=shape)))


def pruned_from(dense: DenseSpec, criterion: str, pattern: str, refinement: str = "none") -> PrunedSpec:
    """A pruned model on a dense pass, with what is not being measured at its default."""
    return PrunedSpec(
        dense=dense, criterion=criterion, pattern=pattern, allocation="uniform", refinement=refinement,
        prune_inputs="dense", seed=0,
    )  # fmt: skip


def alone(function: Any, *arguments: Any) -> Any:
    """Call a function in a fresh process, so that its peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *(_plain(argument) for argument in arguments)).result()


def _plain(argument: Any) -> Any:
    return argument.model_dump(mode="json") if isinstance(argument, Spec | ExecutionConfig) else argument


def run(spec: dict[str, Any], root: Path, execution: dict[str, Any]) -> dict[str, Any]:
    """Run one stage and return its manifest."""
    from freelunch.job import quiet_libraries

    quiet_libraries()
    from freelunch.results.stage import Stage
    from freelunch.stages import function_of

    stage = Stage(parse_spec(spec), root, ExecutionConfig.model_validate(execution), code="benchmark", max_gib=64.0)
    with (root / "log").open("a") as log:
        previous, sys.stderr = sys.stderr, log
        try:
            function_of(stage.spec)(stage)
        finally:
            sys.stderr = previous
    manifest: dict[str, Any] = json.loads((stage.folder / "manifest.json").read_text())
    manifest["peak_gib"] = min(manifest["peak_gib"], own_peak())
    return manifest


def own_peak() -> float:
    """Peak memory of this process in GiB; what ``getrusage`` says is no less than that of the process it comes from."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) / 2**20 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return float("inf")


def write_text(path: Path, demo: ReconstructedSpec) -> None:
    """Documents of random words, enough of them for every split; the last word is one of those before, as the task that
    asks for it wants."""
    calibration = demo.pruned.dense.calibration
    generator = random.Random(0)
    needed = 8 * (calibration.sequences + calibration.validation_sequences) * calibration.length
    with path.open("w", encoding="utf-8") as sink:
        for _ in range(needed // 500):
            words = ["".join(generator.choices("etaoinshrdlu", k=generator.randint(3, 9))) for _ in range(100)]
            sink.write(json.dumps({"text": " ".join([*words, words[-1]])}) + "\n")
