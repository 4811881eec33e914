"""The tests marked ``gpu``, with what each says when it fails."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

PROJECT = Path(__file__).parents[2]
SMALLEST = "not compiled and not qwen3 and not gemma2 and not phi3"
"""Tests of the smallest run: the others bring nothing that those on the CPU do not show."""


def measure(device: torch.device, smallest: bool, seconds: float) -> dict[str, Any]:
    """Outcomes of all tests.

    Args:
        device: of CUDA or the CPU.
        smallest: whether to leave out what only an accelerator can show.
        seconds: after which the tests are stopped; what is missing then is told.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "outcomes.xml")
        command = [
            sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "--device", device.type, f"--junitxml={path}",
            f"--timeout={seconds:.0f}", f"--session-timeout={seconds:.0f}", *(["-k", SMALLEST] if smallest else []),
        ]  # fmt: skip
        print(" ".join(command), flush=True)
        status = subprocess.run(command, cwd=PROJECT, check=False).returncode
        if not path.exists():
            return {"rows": [{"test": "all", "error": f"pytest ended with status {status} before a test; see the log"}]}
        return {"rows": outcomes(path)}


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
