"""Run a stage as a job: output goes to the log, a foreseen failure is one line in it, and the exit status says so."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from freelunch.engine.accelerators import take_one
from freelunch.errors import FreelunchError
from freelunch.plan.config import parse_config
from freelunch.plan.plan import Plan, make_plan
from freelunch.results.artifacts import disk_state, is_disk_error
from freelunch.stages import function_of


def put_on_path(package_root: Path) -> None:
    """Let this process and all it starts import the package from ``package_root``, whatever else is installed."""
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(package_root)]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(package_root), *others])


def foreseen(error: Exception) -> str | None:
    """What to print of a failure that is no defect; None of one that is."""
    if isinstance(error, FreelunchError):
        return str(error)
    if not is_disk_error(error):
        return None
    where = getattr(error, "filename", None)
    # a file without a name is one that was being written; one with a name may have been read
    what = f"cannot use {where}" if where else "cannot write results"
    return f"{what}: {disk_state(Path(where).parent if where else Path.cwd(), error)}"


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Send stdout and stderr, of C code too, to a log; exit with status 1 on a foreseen failure."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    except OSError as error:
        sys.exit(f"error: {foreseen(error) or error}")
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.captureWarnings(True)
    warnings.simplefilter("default")
    try:
        yield
    except Exception as error:
        line = foreseen(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(1)


def plan_of(job: Any) -> Plan:
    """The plan of the config that a Snakemake job was given."""
    return make_plan(parse_config(job.config))


def run(job: Any) -> None:
    """Run the stage of a Snakemake job (``snakemake`` inside its script).

    The spec is that of the job's output in the plan of its config: it is no parameter of the rule, since what counts of
    it is in the output's path, and the rest (a licence, say) should rerun nothing.
    """
    quiet_libraries()
    # imported inside, so that the log also takes what these imports print
    with logged(Path(job.log[0])):
        import torch

        from freelunch.results.stage import Stage

        plan = plan_of(job)
        if plan.config.execution.device != "cpu" and getattr(job.resources, "gpu", False):
            take_one()
        torch.set_num_threads(int(job.threads))
        spec = plan.specs[job.output[0]]
        make = function_of(spec)
        stage = Stage(spec, Path.cwd(), plan.config.execution, job.params.code, plan.config.dense.max_gib)
        with stage.computing():
            make(stage)


def quiet_libraries() -> None:
    """Silence progress bars and advice of transformers: they are about a way of loading models that is not ours.

    By its environment, since not every job loads it.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
