"""``python -m freelunch.bench``: how well the machine is used, and whether memory stays flat in depth.

Runs the real stages on random-weight models of the demo model's widths with the demo's calibration settings, each stage
in a process of its own, and prints one table. Seconds vary between machines and runs; the ratios are what counts.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from .__main__ import load
from .config import DataConfig, EvaluationTask, ExecutionConfig, ModelConfig
from .config import Random as RandomModel
from .costs import forward_operations
from .facts import Facts, facts_of
from .specs import (
    CalibrationSpec,
    DataSpec,
    DenseSpec,
    EvaluationSpec,
    ModelSpec,
    PrunedSpec,
    ReconstructedSpec,
    Spec,
    parse_spec,
)
from .windows import parse_window

SHALLOW, DEEP = 8, 32


def main() -> None:
    """Run the benchmark and print it."""
    plan = load([Path("config.yaml")])
    runs = [run.evaluation.subject for run in plan.runs[plan.config.default_suite]]
    demo = next(subject for subject in runs if isinstance(subject, ReconstructedSpec))
    facts = facts_of(plan.config, demo.pruned.dense.calibration.model.model)
    execution = plan.config.execution
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write_text(root / "text.jsonl", demo)
        peak = _alone(_matmul_rate)
        print(f"bf16 matrix products: {peak / 1e9:.0f} GFLOP/s\n")
        results: dict[int, dict[str, dict[str, Any]]] = {}
        for depth in (SHALLOW, DEEP):
            specs = _specs(demo, facts, depth, root)
            results[depth] = {label: _alone(_run, spec, root, execution) for label, spec in specs.items()}
            if depth == SHALLOW:
                _print_throughput(results[depth], specs, facts, peak)
        _print_memory(results)


def _print_throughput(results: dict[str, dict[str, Any]], specs: dict[str, Spec], facts: Facts, peak: float) -> None:
    print(f"{'stage':28} {'seconds':>8} {'share':>7} {'GFLOP/s':>8} {'of peak':>8}")
    timed = {label: result for label, result in results.items() if label not in ("model", "data", "calibration")}
    total = sum(result["seconds"] for result in timed.values())
    for label, result in timed.items():
        line = f"{label:28} {result['seconds']:8.1f} {result['seconds'] / total:7.1%}"
        spec = specs[label]
        if isinstance(spec, ReconstructedSpec):
            rate = _operations(spec, facts) / result["train_seconds"]
            line += f" {rate / 1e9:8.0f} {rate / peak:8.1%}"
        print(line)
    print("GFLOP/s: all passes of reconstruction (training, validation, dense targets) over the time of its windows\n")


def _operations(spec: ReconstructedSpec, facts: Facts) -> float:
    """Operations that a reconstruction of ``SHALLOW`` blocks does: what its windows really run, counted once each."""
    calibration = spec.pruned.dense.calibration
    train = forward_operations(facts, calibration.sequences * calibration.length, calibration.length)
    validation = forward_operations(facts, calibration.validation_sequences * calibration.length, calibration.length)
    validations = 1 + max(spec.epochs, 3)
    # states between the halves of a block are not in the dense cache: one forward pass of the attention half
    attention = 1 - facts.mlp_matrices * facts.hidden_size * facts.intermediate_size / facts.block_parameters
    targets = attention * (train + validation) if parse_window(spec.window) == 1 else 0.0
    return SHALLOW * (3 * spec.epochs * train + validations * validation + targets)


def _print_memory(results: dict[int, dict[str, dict[str, Any]]]) -> None:
    print(f"{'peak memory, GiB':28} {f'{SHALLOW} blocks':>10} {f'{DEEP} blocks':>10} {'ratio':>7}")
    for label in results[SHALLOW]:
        if label in ("model", "data", "calibration"):
            continue
        shallow, deep = (
            results[depth][label].get("peak_device_gib", results[depth][label]["peak_gib"]) for depth in (SHALLOW, DEEP)
        )
        print(f"{label:28} {shallow:10.3f} {deep:10.3f} {deep / shallow:7.2f}")


def _specs(demo: ReconstructedSpec, facts: Facts, depth: int, root: Path) -> dict[str, Spec]:
    """The stages of the demo on a random model of ``depth`` blocks, by the label they are printed under."""
    shape = facts.model_dump(exclude={"mlp_matrices"}) | {"num_hidden_layers": depth}
    model = ModelSpec(model=f"random-{depth}", source=ModelConfig(random=RandomModel(config=shape)))
    splits: Any = {"calibration": 0.5, "validation": 0.25, "test": 0.25}
    data = DataSpec(data="words", source=DataConfig(path=str(root / "text.jsonl"), splits=splits))
    old = demo.pruned.dense.calibration
    calibration = CalibrationSpec(
        model=model, data=data, sequences=old.sequences, validation_sequences=old.validation_sequences,
        length=old.length, sampling="packed", seed=0,
    )  # fmt: skip
    dense = DenseSpec(calibration=calibration)
    pruned = PrunedSpec(
        dense=dense,
        criterion="wanda",
        pattern="2:4",
        allocation="uniform",
        refinement="none",
        prune_inputs="dense",
        seed=0,
    )
    fields = {name: getattr(demo, name) for name in ReconstructedSpec.model_fields} | {"pruned": pruned}
    windows = {name: ReconstructedSpec(**fields | {"window": name}) for name in ("attention_mlp", "block")}
    task = EvaluationTask(data="words", splits=("test",), length=old.length, sequences=old.sequences)
    return {
        "model": model,
        "data": data,
        "calibration": calibration,
        "dense": dense,
        "prune (wanda, 2:4)": pruned,
        **{f"reconstruct ({name})": spec for name, spec in windows.items()},
        "perplexity": EvaluationSpec(subject=windows["block"], data=(data,), tasks=(task,)),
    }


def _alone(function: Any, *arguments: Any) -> Any:
    """Call a function in a fresh process, so that its peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *(_plain(argument) for argument in arguments)).result()


def _plain(argument: Any) -> Any:
    return argument.model_dump(mode="json") if isinstance(argument, Spec | ExecutionConfig) else argument


def _run(spec: dict[str, Any], root: Path, execution: dict[str, Any]) -> dict[str, Any]:
    """Run one stage and return its manifest."""
    from functools import partial

    from .job import quiet_libraries
    from .stages.calibrate import calibrate
    from .stages.dense import dense
    from .stages.evaluate import evaluate
    from .stages.prepare_data import prepare_data
    from .stages.prepare_model import prepare_model
    from .stages.prune import prune
    from .stages.recover import recover
    from .stages.stage import Stage

    quiet_libraries()
    stages: dict[str, Callable[[Stage], None]] = {
        "models": prepare_model, "data": prepare_data, "calibration": calibrate, "dense": partial(dense, max_gib=64.0),
        "pruned": prune, "recovered": recover, "evaluation": evaluate,
    }  # fmt: skip
    stage = Stage(parse_spec(spec), root, ExecutionConfig.model_validate(execution), code="benchmark")
    with (root / "log").open("a") as log:
        previous, sys.stderr = sys.stderr, log
        try:
            stages[stage.spec.stage](stage)
        finally:
            sys.stderr = previous
    manifest: dict[str, Any] = json.loads((stage.folder / "manifest.json").read_text())
    return manifest


def _matmul_rate(seconds: float = 2.0) -> float:
    """Operations per second of large bfloat16 matrix products, the best of several timings."""
    import torch

    from .device import choose

    device = choose("auto")
    size = 2048 if device.type == "cpu" else 8192
    one, other = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        (one @ other)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _write_text(path: Path, demo: ReconstructedSpec) -> None:
    """Documents of random words, enough of them for every split."""
    calibration = demo.pruned.dense.calibration
    generator = random.Random(0)
    needed = 8 * (calibration.sequences + calibration.validation_sequences) * calibration.length
    with path.open("w", encoding="utf-8") as sink:
        for _ in range(needed // 500):
            words = ("".join(generator.choices("etaoinshrdlu", k=generator.randint(2, 9))) for _ in range(100))
            sink.write(json.dumps({"text": " ".join(words)}) + "\n")


if __name__ == "__main__":
    main()
