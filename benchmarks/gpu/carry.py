"""``python -m benchmarks.gpu.carry``: fetch what ``benchmarks/gpu.sh`` needs on a machine without a package index.

It writes to ``.gpu/``, which git ignores: wheels of the pinned versions for CPython 3.12 on x86-64, and finished
results of the workflow: the text and the trained model of the part ``pipeline``, which a runner takes as they are.
Copy the repository with that folder to the machine that has the GPU.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from freelunch.errors import FreelunchError
from freelunch.plan.plan import walk
from freelunch.plan.spec import RESULTS
from freelunch.runner import Runner

from .pipeline import ARCHIVE, REFERENCE, plan_of

PROJECT = Path(__file__).parents[2]
CARRIED = PROJECT / ".gpu"
WHEELS = CARRIED / "wheels"
PYTHON = "3.12"
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 26, 24, 17, 12, 5)] + [
    "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64",
]  # fmt: skip
ROOTS = ("transformers", "safetensors", "pydantic", "pyyaml", "tqdm", "jinja2", "pytest-timeout")
"""What computing and testing import; without lm-eval (25 MB) and so without its zero-shot tasks."""
THERE = {"torch", "numpy", "pandas", "pyarrow", "scipy", "pytest", "hypothesis", "triton", "setuptools", "pillow"}
"""What an environment for GPUs has; it keeps its own versions."""
UNUSED = {"hf-xet", "typer"}
"""What is needed by downloads and commands of the hub alone."""
MOST = 60e6
"""Bytes that may be carried, the tree without the figures of its documentation included."""


def main() -> None:
    """Fetch, make, and list what is carried.

    Raises:
        FreelunchError: a wheel cannot be had, or all of it is larger than ``MOST``.
    """
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.carry", description=__doc__.split(": ")[1].split("\n")[0])
    parser.add_argument("--no-model", action="store_true", help="leave out the model, whose training takes an hour on "
                        "two cores; the GPU then trains it in the part `pipeline`")  # fmt: skip
    options = parser.parse_args()
    fetch_wheels()
    make_results(with_model=not options.no_model)
    list_sizes()


def fetch_wheels() -> None:
    """Download the wheels of the closure of ``ROOTS``, in the versions of ``requirements.lock``."""
    shutil.rmtree(WHEELS, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(WHEELS)]
    target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON]
    for platform in PLATFORMS:
        target += ["--platform", platform]
    names = sorted(closure(ROOTS) - THERE - UNUSED)
    lines = (PROJECT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = {_normal(line.partition("==")[0]): line for line in lines if "==" in line}
    subprocess.run([*command, *target, *(pins[name] for name in names)], check=True)


def closure(roots: tuple[str, ...]) -> set[str]:
    """Names of the packages that ``roots`` need, themselves included, not below ``THERE`` and ``UNUSED``."""
    names: set[str] = set()
    pending = [_normal(root) for root in roots]
    while pending:
        name = pending.pop()
        if name not in names:
            names.add(name)
            pending += [] if name in THERE | UNUSED else _needs(name)
    return names


def _needs(name: str) -> Iterator[str]:
    try:
        needs = [Requirement(line) for line in distribution(name).requires or []]
    except PackageNotFoundError:
        raise FreelunchError(f"{name} is not installed; run `make venv` first") from None
    environment = {"extra": "", "python_version": PYTHON, "python_full_version": f"{PYTHON}.0"}
    for need in needs:
        if need.marker is None or need.marker.evaluate(environment):
            yield _normal(need.name)


def make_results(with_model: bool) -> None:
    """Run the stages that the part ``pipeline`` starts from: its text, and its model unless that is left out.

    They are made in ``.gpu/results``, where an interrupted training goes on, and packed.
    """
    runner = Runner.of(plan_of(REFERENCE).config, CARRIED, lambda line: print(line, flush=True))
    kept = {"data", "models"} if with_model else {"data"}
    specs = [spec for run in plan_of(REFERENCE).runs["gpu"] for spec in walk(run.evaluation) if spec.stage in kept]
    for spec in {spec.manifest: spec for spec in specs}.values():
        runner.need(spec)
    with tarfile.open(ARCHIVE, "w:xz") as archive:
        for stage in sorted(kept):
            archive.add(CARRIED / RESULTS / stage, f"{RESULTS}/{stage}")


def list_sizes() -> None:
    """Print what is carried, in MB, with the tree."""
    tree = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    names = [name for name in tree.split("\0") if name and not name.startswith("docs/figures/")]
    sizes = {"the tree": sum((PROJECT / name).lstat().st_size for name in names)}
    for path in [*WHEELS.glob("*.whl"), ARCHIVE]:
        sizes[str(path.relative_to(CARRIED))] = path.stat().st_size
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        print(f"{size / 1e6:8.2f} MB  {name}")
    total = sum(sizes.values())
    print(f"{total / 1e6:8.2f} MB  in all")
    if total > MOST:
        raise FreelunchError(f"{total / 1e6:.0f} MB are carried, more than {MOST / 1e6:.0f}")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
