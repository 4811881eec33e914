"""The pipeline from text to perplexities, on a device and on the CPU, with the same model and the same settings.

The device starts from what ``benchmarks.gpu.carry`` made, or downloads the text and trains the model itself.
The CPU works beside it, in a process of its own, on the same dense model.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from freelunch.errors import first_line
from freelunch.plan.config import parse_config
from freelunch.plan.plan import Plan, Run, make_plan, walk
from freelunch.plan.spec import RESULTS
from freelunch.plan.yaml_files import read_yaml
from freelunch.results.artifacts import read_json
from freelunch.runner import Runner

PROJECT = Path(__file__).parents[2]
ARCHIVE = PROJECT / ".gpu" / "results.tar.xz"
"""Finished results to start from, the text and the model, where they were carried."""
SUITE = "gpu"
REFERENCE = "llama-15m"
"""Model of the config that is pruned; small, and trained, so that what goes wrong shows in its perplexity."""
CRITERIA = ("wanda", "sparsegpt")
WINDOWS = ("matrix", "attention_mlp", "block", "model")
BASE = {"models", "data", "calibration"}
"""Stages that the CPU takes from the device: both start from one model and one calibration set."""
CLOSE = {"bfloat16": 0.05, "float32": 0.01}
"""Relative difference of perplexities above which device and CPU do not agree, by what the model is stored in."""


def plan_of(model: str, device: str = "cpu") -> Plan:
    """The suite that is run, for a model of ``config.yaml`` or of ``tests/tiny.yaml`` (``tiny``)."""
    tiny = model == "tiny"
    raw = read_yaml(PROJECT / ("tests/tiny.yaml" if tiny else "config.yaml"))
    data, length = ("documents", 64) if tiny else ("wikipedia", 256)
    if tiny:
        raw["data"][data]["path"] = str(PROJECT / raw["data"][data]["path"])
    windows = [{"criterion": list(CRITERIA), "recovery": "reconstruct", "window": list(WINDOWS)}]
    whole = [{"criterion": list(CRITERIA), "recovery": ["none", "retrain"]}]
    suite = {
        "description": "What benchmarks/gpu runs",
        "defaults": {
            "model": model, "calibration": data, "sampling": "packed", "sequences": 16 if tiny else 32,
            "validation_sequences": 4 if tiny else 8, "length": length, "pattern": "2:4", "epochs": 1,
            "batch_size": 4, "learning_rate": 1e-3,
        },
        "runs": [*whole, *windows],
        "evaluate": [{"data": data, "splits": ["test"], "length": length, "sequences": 8 if tiny else 24}],
    }  # fmt: skip
    execution = raw.get("execution", {}) | {"device": device}
    return make_plan(parse_config(raw | {"default_suite": SUITE, "suites": {SUITE: suite}, "execution": execution}))


def measure(
    device: torch.device, smallest: bool, seconds: float, keep: Callable[[dict[str, Any]], object] = len
) -> dict[str, Any]:
    """Perplexities and seconds of every run on ``device``, beside those of the CPU.

    Args:
        device: of CUDA or the CPU.
        smallest: whether to take the random model of the tests instead of the trained one.
        seconds: after which no further run is started; what is missing then is told in its row.
        keep: is given the rows so far, without those of the CPU.

    Raises:
        FreelunchError: the model or its text cannot be had.
    """
    model, until = "tiny" if smallest else REFERENCE, time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if ARCHIVE.exists() and not smallest:
            with tarfile.open(ARCHIVE) as archive:
                archive.extractall(root / "device", filter="data")
        plan = plan_of(model, device.type)
        for spec in [spec for spec in walk(plan.runs[SUITE][-1].evaluation) if spec.stage in BASE]:
            Runner.of(plan.config, root / "device").need(spec)
        for stage in BASE:
            shutil.copytree(root / "device" / RESULTS / stage, root / "cpu" / RESULTS / stage)
        command = [sys.executable, "-m", __name__, model, "cpu", str(root / "cpu"), str(until - time.monotonic())]
        with (root / "cpu.jsonl").open("w") as sink, subprocess.Popen(command, stdout=sink, cwd=PROJECT) as beside:
            rows = []
            for row in run_all(model, device.type, root / "device", until):
                rows.append(row)
                keep({"model": model, "rows": [each | {"cpu perplexity": None} for each in rows]})
            try:
                beside.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                beside.kill()  # the rows that it has written count
        told = [json.loads(line) for line in (root / "cpu.jsonl").read_text().splitlines() if line.endswith("}")]
    cpu = {row["run"]: row for row in told}
    for row in rows:
        row["cpu perplexity"] = cpu.get(row["run"], {}).get("perplexity")
        row["cpu seconds"] = cpu.get(row["run"], {}).get("seconds")
        _compare(row, plan.config.models[model].dtype)
    return {"model": model, "rows": rows}


def run_all(model: str, device: str, root: Path, until: float) -> Iterator[dict[str, Any]]:
    """Run the suite in a directory; a row for every run, the dense one first."""
    plan = plan_of(model, device)
    runner = Runner.of(plan.config, root)
    for run in plan.runs[SUITE]:
        if time.monotonic() > until:
            yield {"run": _name(run), "left out": "no time left"}
            continue
        started = time.perf_counter()
        try:
            (metric,) = read_json(runner.need(run.evaluation).file("metrics.json"))
        except Exception as error:  # the other runs are still worth their time
            yield {"run": _name(run), "error": f"{type(error).__name__}: {first_line(error)}"}
        else:
            yield {"run": _name(run), "perplexity": metric["value"], "seconds": time.perf_counter() - started}


def _name(run: Run) -> str:
    axes: Any = run.axes
    if axes is None:
        return "dense"
    recovery = axes.window if axes.recovery == "reconstruct" else axes.recovery
    return f"{axes.criterion}, {recovery}"


def _compare(row: dict[str, Any], dtype: str) -> None:
    one, other = row.get("perplexity"), row["cpu perplexity"]
    if one and other:
        row["difference"] = one / other - 1
        if abs(row["difference"]) > CLOSE.get(dtype, CLOSE["bfloat16"]):
            row["error"] = f"perplexity {one:.2f} on the device, {other:.2f} on the CPU"


def lines(result: dict[str, Any]) -> list[str]:
    """The table of a result."""
    head = f"{'2:4, ' + result['model']:28} {'perplexity':>11} {'CPU':>9} {'difference':>11} {'seconds':>8} {'CPU':>8}"
    return [head, *map(_line, result["rows"])]


def _line(row: dict[str, Any]) -> str:
    if "perplexity" not in row:
        return f"{row['run']:28} {row.get('error') or 'left out: ' + row['left out']}"
    cpu = row["cpu perplexity"]
    beside = f"{cpu:9.2f} {row['difference']:+11.1%}" if cpu else f"{'-':>9} {'-':>11}"
    times = f"{row['seconds']:8.1f} {row['cpu seconds']:8.1f}" if cpu else f"{row['seconds']:8.1f} {'-':>8}"
    return f"{row['run']:28} {row['perplexity']:11.2f} {beside} {times}" + ("  NOT EQUAL" if "error" in row else "")


if __name__ == "__main__":
    name, where, directory, left = sys.argv[1:]
    for each in run_all(name, where, Path(directory), time.monotonic() + float(left)):
        print(json.dumps(each), flush=True)
