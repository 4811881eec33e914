"""What it brings to split a reconstruction into shards: one process on one core against as many as there are cores.

Runs the real stages on a random-weight model of the demo model's widths, and compares the tensors bit by bit.
"""

from __future__ import annotations

import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from freelunch.plan.config import ExecutionConfig
from freelunch.plan.specs import ReconstructedSpec

from .runs import alone, pruned_from, random_dense, run, the_demo, write_text

BLOCKS = 8
MOST = 8
"""Shards that are tried at most."""


def main() -> None:
    """Run the benchmark and print it."""
    demo, facts, execution = the_demo()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_text(root / "text.jsonl", demo)
        dense = random_dense(demo, facts, BLOCKS, root)
        pruned = pruned_from(dense, "wanda", "2:4")
        calibration = dense.calibration
        for spec in (calibration.model, calibration.data, calibration, dense, pruned):
            alone(run, spec, root, execution)
        whole = demo.changed(pruned=pruned, dense=dense)
        started = time.perf_counter()
        manifest = alone(_on_one_core, whole, root, execution)
        seconds = time.perf_counter() - started
        print(f"{'shards':>6} {'seconds':>8} {'speed-up':>9} {'of training':>12}   tensors")
        print(f"{1:6} {seconds:8.1f} {1:9.2f} {1:12.2f}")
        count = 2
        while count <= min(MOST, os.cpu_count() or 1):
            _compare(whole, count, root, execution, seconds, manifest)
            count *= 2


def _compare(
    whole: ReconstructedSpec, count: int, root: Path, execution: ExecutionConfig, alone_seconds: float,
    manifest: dict[str, Any],
) -> None:  # fmt: skip
    shards = whole.split(count)
    started = time.perf_counter()
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(_on_one_core, shard.model_dump(mode="json"), root, execution.model_dump()) for shard in shards
        ]
        found = [job.result() for job in jobs]
    seconds = time.perf_counter() - started
    training = manifest["train_seconds"] / max(result["train_seconds"] for result in found)
    written = {name: entry["sha256"] for result in found for name, entry in result["files"].items()}
    same = all(
        written[name] == entry["sha256"] for name, entry in manifest["files"].items() if name.endswith(".safetensors")
    )
    told = "the same bits" if same else "DIFFERENT"
    print(f"{count:6} {seconds:8.1f} {alone_seconds / seconds:9.2f} {training:12.2f}   {told}")


def _on_one_core(spec: dict[str, Any], root: Path, execution: dict[str, Any]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    return run(spec, root, execution)
