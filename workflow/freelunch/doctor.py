"""``python -m freelunch doctor``: whether this machine can run a suite, one line per check."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

from freelunch.budget import budget, warnings
from freelunch.errors import FreelunchError
from freelunch.plan.plan import Plan
from freelunch.plan.spec import RESULTS
from freelunch.results.artifacts import check_writable
from freelunch.results.code import LIBRARIES, PACKAGE

LOCK = PACKAGE.parents[1] / "requirements.lock"


class Finding(NamedTuple):
    """What a check found; a warning lets a suite run, a problem does not."""

    check: str
    level: Literal["ok", "warning", "problem"]
    text: str

    def __str__(self) -> str:
        return f"{self.level:8} {self.check}: {self.text}"


def examine(plan: Plan, suite: str, root: Path) -> Iterator[Finding]:
    """All checks, each when the one before was read."""
    yield from check_versions()
    yield check_torch(plan)
    yield check_compiler(plan)
    yield from check_needs(plan, suite, root)
    yield check_hub(plan, suite)
    yield check_locks(root)
    yield check_writing(root)


def check_versions(lock: Path = LOCK, installed: Callable[[str], str] = version) -> Iterator[Finding]:
    """Installed versions against the lock."""
    text = lock.read_text(encoding="utf-8") if lock.is_file() else ""
    pins = dict(re.findall(r"^([\w.-]+)==([^\s;+]+)", text, re.MULTILINE))
    if not pins:
        yield Finding("versions", "warning", f"{lock} is not there to compare with")
        return
    different = []
    for name in (*LIBRARIES, "pydantic"):
        try:
            there = installed(name).split("+")[0]
        except PackageNotFoundError:
            yield Finding("versions", "problem", f"{name} is not installed; run `make venv`")
            continue
        if there != pins.get(name, there):
            different.append(f"{name} {there} (the lock has {pins[name]})")
    if different:
        yield Finding("versions", "warning", f"{', '.join(different)}; `make venv` installs the lock's")
    else:
        yield Finding("versions", "ok", "those of requirements.lock")


def check_torch(plan: Plan) -> Finding:
    """The device that jobs would take, and whether it is fast in 16 bits."""
    try:
        import torch

        from freelunch.engine.device import choose, products

        device = choose(plan.config.execution.device)
    except ImportError as error:
        return Finding("torch", "problem", f"cannot be imported ({error}); run `make venv`")
    except FreelunchError as error:
        return Finding("torch", "problem", str(error))
    build = f"torch {torch.__version__} on {device.type}"
    if device.type == "cpu" and products(torch.bfloat16, device) == torch.float32:
        return Finding("torch", "warning", f"{build}: 16-bit models are computed in float32, which is faster here")
    return Finding("torch", "ok", f"{build}, {torch.get_num_threads()} threads")


def find_compiler() -> str | None:
    """Path of the C++ compiler that ``torch.compile`` would take on the CPU."""
    asked = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [asked] if asked else ["g++", "clang++"])), None)


def check_compiler(plan: Plan) -> Finding:
    """Whether there is what ``execution.compile`` takes."""
    if not plan.config.execution.compile:
        return Finding("compiler", "ok", "none is needed")
    if compiler := find_compiler():
        return Finding("compiler", "ok", compiler)
    return Finding("compiler", "problem", "execution.compile needs a C++ compiler, and there is none; install g++")


def check_needs(plan: Plan, suite: str, root: Path) -> Iterator[Finding]:
    """Disk and memory against the plan."""
    jobs = budget(plan, suite)
    lacking = warnings(jobs, root)
    for text in lacking:
        level: Literal["warning", "problem"] = "warning" if jobs["done"].any() else "problem"
        yield Finding("needs", level, f"{text}; `freelunch plan --runs` shows which runs take it")
    if not lacking:
        disk, memory = jobs["disk"].sum() / 2**30, jobs["host"].max() / 2**30
        yield Finding("needs", "ok", f"{disk:.2f} GiB of disk and {memory:.2f} GiB of memory")


def check_hub(plan: Plan, suite: str) -> Finding:
    """What a suite needs from the Hugging Face hub and is set for it; nothing is asked of the network."""
    origins = [spec.origin for spec in plan.needed(suite)]
    names = sorted({origin.hub.id for origin in origins if origin is not None and origin.hub is not None})
    if not names:
        return Finding("hub", "ok", f"suite {suite} needs none")
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface", "hub"))
    there = {path.name.partition("--")[2] for path in cache.expanduser().glob("*--*")}
    missing = [name for name in names if name.replace("/", "--") not in there]
    if not missing:
        return Finding("hub", "ok", f"{cache} has all {len(names)} repositories (revisions are not compared)")
    listed = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return Finding("hub", "problem", f"HF_HUB_OFFLINE is set and {cache} lacks {listed}; unset it or set HF_HOME")
    if os.environ.get("HF_TOKEN") or (cache.expanduser().parent / "token").is_file():
        return Finding("hub", "ok", f"will be fetched: {listed}")
    return Finding("hub", "warning", f"will be fetched: {listed}; gated ones need HF_TOKEN, which is not set")


def check_locks(root: Path) -> Finding:
    """Whether Snakemake runs here, or was killed."""
    if any((root / ".snakemake" / "locks").glob("*")):
        return Finding("lock", "warning", "Snakemake is at work here; if it was killed, run `snakemake --unlock`")
    return Finding("lock", "ok", "none left behind")


def check_writing(root: Path) -> Finding:
    """Whether results can be written."""
    try:
        check_writable(root / RESULTS)
    except FreelunchError as error:
        return Finding("results", "problem", str(error))
    return Finding("results", "ok", f"{root / RESULTS} can be written to")
