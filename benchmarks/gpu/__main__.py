"""``python -m benchmarks.gpu``: prove and measure on a GPU, in at most eight minutes, what was built without one.

Five parts, the most important first, each in a process and with a time limit of its own, so that the others run when
one fails. One table is printed at the end. The numbers are written as ``gpu.json``, with a log of every part, to the
folder that the variable ``OUT`` names, or to a new one; ``benchmarks.gpu.page`` makes ``docs/gpu.md`` of them.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.gpu.machine import machine
from benchmarks.runs import alone
from freelunch.errors import first_line

PROJECT = Path(__file__).parents[2]
SECONDS = {"checks": 150, "pipeline": 85, "blocks": 160, "cache": 35, "sparse": 25}
"""Parts in their order, and how long each may take, with its start."""
LIMIT = 470
"""Seconds of all parts together: what those before took too long is taken from those that follow."""
MARGIN = 8
"""Seconds before its time is over at which a part is to end by itself; then it is killed."""


def main() -> int:
    """Run the parts; the status says whether all of them are without an error."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=(__doc__ or "").split(": ")[1].split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"which of {', '.join(SECONDS)} (default: all)")
    parser.add_argument(
        "--device", default="cuda", choices=["cuda", "cpu"], help="cpu shows that the script itself works"
    )
    parser.add_argument("--smallest", action="store_true", help="the smallest sizes, which say nothing about speed")
    parser.add_argument("--folder", type=Path, help="where files of the parts lie (default: OUT)")
    # a part in its own process
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    parts = options.parts or list(SECONDS)
    if unknown := [part for part in parts if part not in SECONDS]:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(SECONDS)}")
    if options.write:
        _compute(parts[0], options.device, options.smallest, options.folder, options.write, options.until)
        return 0
    out = Path(os.environ.get("OUT") or tempfile.mkdtemp(prefix="freelunch-gpu-")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    result: dict[str, Any] = {"machine": alone(machine, options.device), "smallest": options.smallest, "parts": {}}
    for part in parts:
        print(f"{part} ...", end=" ", flush=True)
        limit = min(SECONDS[part], LIMIT - (time.perf_counter() - started))
        result["parts"][part] = _part(part, options.device, options.smallest, options.folder or out, out, limit)
        print(f"{result['parts'][part]['seconds']:.0f} s", flush=True)
        result["seconds"] = round(time.perf_counter() - started, 1)
        (out / "gpu.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    print("\n" + "\n".join(table(result)))
    print(f"\nnumbers and logs: {out}")
    return 1 if any(errors(part) for part in result["parts"].values()) else 0


def _part(part: str, device: str, smallest: bool, folder: Path, out: Path, limit: float) -> dict[str, Any]:
    """Run a part in a process of its own, with its log in ``out``; what it had measured when it was killed counts."""
    path, started = out / f"{part}.json", time.perf_counter()
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu", part, "--device", device, *(["--smallest"] if smallest else [])]
    command += ["--write", str(path), "--until", str(time.time() + limit - MARGIN), "--folder"]
    # hidden states of a part that is killed go with its folder
    with tempfile.TemporaryDirectory(dir=folder) as scratch, (out / f"{part}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*command, scratch], cwd=PROJECT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status: int | str = process.wait(max(1.0, limit))
        except subprocess.TimeoutExpired:
            status = f"was killed after {limit:.0f} s"
        finally:
            _kill(process)
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": []}
    path.unlink(missing_ok=True)
    if status:
        said = status if isinstance(status, str) else f"ended with status {status}"
        result["error"] = f"the part {said}; see {part}.log"
    return result | {"seconds": round(time.perf_counter() - started, 1)}


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a part and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _compute(part: str, device: str, smallest: bool, folder: Path, path: Path, until: float) -> None:
    """A part in this process, its result to ``path``; the cache is measured against what the blocks before it read."""
    import torch

    def keep(result: dict[str, Any]) -> None:
        part_of = path.with_suffix(".part")
        part_of.write_text(json.dumps(result, default=str), encoding="utf-8")
        part_of.replace(path)

    others: dict[str, Any] = {"folder": folder} if part in ("blocks", "cache") else {}
    before = path.with_name("gpu.json")
    if part == "cache" and before.exists():
        blocks = json.loads(before.read_text(encoding="utf-8"))["parts"].get("blocks", {"rows": []})
        others["needed"] = importlib.import_module("benchmarks.gpu.cache").needed_by(blocks)
    try:
        module = importlib.import_module(f"benchmarks.gpu.{part}")
        keep(module.measure(torch.device(device), smallest, until - time.time(), keep=keep, **others))
    except Exception as error:
        traceback.print_exc()
        measured = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": []}
        keep(measured | {"error": f"{type(error).__name__}: {first_line(error)}"})


def table(result: dict[str, Any]) -> list[str]:
    """What is printed at the end: the tables of all parts, and the errors once more."""
    machine = result["machine"]
    lines = [
        f"{machine.get('card', 'CPU')}, driver {machine.get('driver', '-')}, torch {machine['versions'].get('torch')}"
    ]
    for name, part in result["parts"].items():
        lines += ["", f"== {name} ({part['seconds']:.0f} s) =="]
        if part["rows"]:
            try:
                lines += importlib.import_module(f"benchmarks.gpu.{name}").lines(part)
            except Exception as error:  # the other tables are still worth showing
                lines += [f"ERROR the table cannot be made of the numbers in gpu.json: {error!r}"]
        lines += [f"ERROR {part['error']}"] if "error" in part else []
    open_ = sum("left out" in row or ("perplexity" in row and row["cpu perplexity"] is None)
                for part in result["parts"].values() for row in part["rows"])  # fmt: skip
    wrong = {name: errors(part) for name, part in result["parts"].items() if errors(part)}
    said = ", ".join(f"{name} {count}" for name, count in wrong.items()) or "none"
    lines += ["", f"{result['seconds']:.0f} s; left out or not compared: {open_}; errors: {said}"]
    return lines


def errors(part: dict[str, Any]) -> int:
    """Rows of a part with an error, and one for the part itself."""
    return sum("error" in row for row in part["rows"]) + ("error" in part)


if __name__ == "__main__":
    sys.exit(main())
