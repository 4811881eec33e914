"""How well the machine is used, and whether memory stays flat in depth.

Runs the real stages on random-weight models of the demo model's widths with the demo's calibration settings, each stage
in a process of its own, and prints one table.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from freelunch.costs import forward_operations
from freelunch.plan.config import PerplexityTask
from freelunch.plan.facts import Facts
from freelunch.plan.spec import Spec
from freelunch.plan.specs import EvaluationSpec, ReconstructedSpec
from freelunch.recover.windows import parse_window

from .rate import matmul_rate
from .runs import alone, pruned_from, random_dense, run, the_demo, write_text

SHALLOW, DEEP = 8, 32


def main() -> None:
    """Run the benchmark and print it."""
    demo, facts, execution = the_demo()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_text(root / "text.jsonl", demo)
        kind, peak = alone(matmul_rate)
        print(f"{kind} matrix products: {peak / 1e9:.0f} GFLOP/s\n")
        results: dict[int, dict[str, dict[str, Any]]] = {}
        for depth in (SHALLOW, DEEP):
            specs = _specs(demo, facts, depth, root)
            results[depth] = {label: alone(run, spec, root, execution) for label, spec in specs.items()}
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
    epochs = spec.training.epochs
    validations = 1 + max(epochs, 3)
    # states between the halves of a block are not in the dense cache: one forward pass of the attention half
    attention = 1 - facts.mlp_matrices * facts.hidden_size * facts.intermediate_size / facts.block_parameters
    targets = attention * (train + validation) if parse_window(spec.window) == 1 else 0.0
    return float(SHALLOW * (3 * epochs * train + validations * validation + targets))


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
    dense = random_dense(demo, facts, depth, root)
    calibration = dense.calibration
    pruned = pruned_from(dense, "wanda", "2:4")
    windows = {name: demo.changed(pruned=pruned, dense=dense, window=name) for name in ("attention_mlp", "block")}
    task = PerplexityTask(data="words", splits=("test",), length=calibration.length, sequences=calibration.sequences)
    return {
        "model": calibration.model,
        "data": calibration.data,
        "calibration": calibration,
        "dense": dense,
        "prune (wanda, 2:4)": pruned,
        **{f"reconstruct ({name})": spec for name, spec in windows.items()},
        "perplexity": EvaluationSpec(subject=windows["block"], data=(calibration.data,), tasks=(task,)),
    }
