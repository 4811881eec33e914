"""A budget as text: what ``python -m freelunch plan`` prints."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TextIO

from .budget import Budget, Need, warnings

HEADER = f"{'operations':>11} {'GPU hours':>10} {'disk GiB':>10} {'memory GiB':>11} {'GPU GiB':>8}"


def print_budget(found: Budget, tflops: float, runs: bool) -> None:
    """By run if asked for, by model if there are several, and by stage; then warnings."""
    if runs:
        width = max(len(each.run.name) for each in found.runs)
        print(f"  {'run':{width}} {HEADER} {'shared':>9}")
        for each in found.runs:
            need = each.own + each.shared
            # stages that it shares are in its numbers too; those that an earlier run in the list has are not
            shared = _hours(each.shared.hours(tflops))
            print(f"  {each.run.name:{width}} {_row(need, tflops)} {shared:>9}  {_state(each.run.evaluation.manifest)}")
        print()
    if len(found.models) > 1:
        width = max(map(len, found.models))
        print(f"{'model':{width}} {'runs':>5} {HEADER}")
        for model, (count, need) in found.models.items():
            print(f"{model:{width}} {count:5} {_row(need, tflops)}")
        print()
    print(f"{'stage':13} {'jobs':>5} {'done':>5} {HEADER}")
    for stage, need in [*found.stages.items(), ("total", found.total)]:
        print(f"{stage:13} {need.jobs:5} {need.done:5} {_row(need, tflops)}")
    print(
        f"\n{len(found.runs)} runs. Sums over jobs, 2 operations per multiply-add; memory is that of the largest job.\n"
        "GPU GiB: memory of a GPU, 0 where jobs are planned for the CPU (execution.device), whose memory it is then.\n"
        f"GPU hours: operations at {tflops:g} TFLOP/s (--tflops), an estimate without downloads, reading and idling."
    )
    if runs:
        print("A stage that several runs need counts for the first of them; shared: GPU hours of such stages.")
    for warning in warnings(found.total, Path()):
        print(f"warning: {warning}")


def write_csv(found: Budget, tflops: float, sink: TextIO) -> None:
    """One line per run, all digits; what it shares with other runs and is the first to need in columns of its own."""
    names = ("operations", "gpu_hours", "disk_gib", "memory_gib", "gpu_gib")
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["run", "model", "done", *names, *(f"shared_{name}" for name in names)])
    for each in found.runs:
        evaluation = each.run.evaluation
        writer.writerow(
            [each.run.name, each.run.model, int(Path(evaluation.manifest).exists())]
            + [value for need in (each.own, each.shared) for value in _values(need, tflops)]
        )


def _state(manifest: str) -> str:
    return "done" if Path(manifest).exists() else "to do"


def _values(need: Need, tflops: float) -> tuple[float, float, float, float, float]:
    return need.operations, need.hours(tflops), need.disk / 2**30, need.memory / 2**30, need.device / 2**30


def _row(need: Need, tflops: float) -> str:
    operations, hours, disk, memory, device = _values(need, tflops)
    return f"{operations:11.2e} {_hours(hours):>10} {disk:10,.3f} {memory:11.2f} {device:8.2f}"


def _hours(hours: float) -> str:
    return "<0.01" if 0 < hours < 0.01 else f"{hours:,.2f}"
