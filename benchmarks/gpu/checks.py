"""The tests marked ``gpu``, with what each says when it fails."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

PROJECT = Path(__file__).parents[2]
GROUPS = ("stages", "training")
SMALLEST = "not compiled and not qwen3 and not gemma2 and not phi3"
"""Tests of the smallest run: the others bring nothing that those on the CPU do not show."""


def measure(
    device: torch.device, smallest: bool, seconds: float, keep: Callable[[dict[str, Any]], object] = len
) -> dict[str, Any]:
    """Outcomes of all tests; those of trainings, which start processes of their own, beside the others.

    Args:
        device: of CUDA or the CPU.
        smallest: whether to leave out what only an accelerator can show.
        seconds: after which the tests are stopped; what is missing then is told.
        keep: is given nothing: outcomes are there at the end alone.
    """
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        running = [_start(device, smallest, seconds, Path(folder), group) for group in GROUPS]
        for process, group in zip(running, GROUPS, strict=True):
            rows += _ended(process.wait(), Path(folder), group)
    return {"rows": rows}


def _start(device: torch.device, smallest: bool, seconds: float, folder: Path, group: str) -> subprocess.Popen[bytes]:
    tests = (
        ["tests/gpu/test_training.py"] if group == "training" else ["tests/gpu", "--ignore=tests/gpu/test_training.py"]
    )
    command = [
        sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-m", "gpu", *tests, "--device", device.type,
        f"--junitxml={folder / group}.xml", f"--timeout={seconds:.0f}", f"--session-timeout={seconds:.0f}",
        *(["-k", SMALLEST] if smallest else []),
    ]  # fmt: skip
    print(" ".join(command), flush=True)
    return subprocess.Popen(command, cwd=PROJECT, env=os.environ | {"COLLECTED": str(folder / group)})


def _ended(status: int, folder: Path, group: str) -> list[dict[str, Any]]:
    """Rows of a group of tests, and one for those that did not run."""
    path, collected = folder / f"{group}.xml", folder / group
    if not path.exists() or not collected.exists():
        return [{"test": group, "error": f"tests of {group} ended with status {status}; see the log"}]
    rows = outcomes(path)
    missing = int(collected.read_text()) - sum(row["passed"] + row["skipped"] + len(row["failures"]) for row in rows)
    if missing or (status and not any(row["failures"] for row in rows)):
        rows.append({"test": group, "error": f"{missing} tests of {group} did not run, status {status}; see the log"})
    return rows


def outcomes(path: Path) -> list[dict[str, Any]]:
    """Rows of a JUnit file, one per test function, with the first line of every failure."""
    rows: dict[str, dict[str, Any]] = defaultdict(lambda: {"passed": 0, "skipped": 0, "seconds": 0.0, "failures": []})
    for case in ElementTree.parse(path).iter("testcase"):
        name, _, arguments = case.attrib["name"].partition("[")
        row = rows[name]
        row["seconds"] += float(case.attrib["time"])
        failures = [*case.findall("failure"), *case.findall("error")]
        for failure in failures:
            row["failures"].append(f"[{arguments or ']'} {failure.attrib.get('message', '').splitlines()[0][:300]}")
        if case.find("skipped") is not None:
            row["skipped"] += 1
        elif not failures:
            row["passed"] += 1
    return [{"test": name.removeprefix("test_").replace("_", " "), **row, **_error(row)} for name, row in rows.items()]


def _error(row: dict[str, Any]) -> dict[str, str]:
    return {"error": f"{len(row['failures'])} failed"} if row["failures"] else {}


def lines(result: dict[str, Any]) -> list[str]:
    """The table of a result."""
    table = [f"{'passed':>6} {'failed':>6} {'skipped':>7} {'seconds':>8}  test"]
    for row in result["rows"]:
        if "passed" not in row:
            table.append(row["error"])
            continue
        count = f"{row['passed']:6} {len(row['failures']):6} {row['skipped']:7}"
        table.append(f"{count} {row['seconds']:8.1f}  {row['test']}")
        reasons = defaultdict(list)
        for failure in row["failures"]:
            arguments, _, reason = failure.partition("] ")
            reasons[reason].append(arguments.removeprefix("["))
        table += [f"{'':24}FAILED {', '.join(cases)}: {reason}" for reason, cases in reasons.items()]
    return table
