"""Run a stage as a job: output goes to the log, a foreseen failure is one line in it, and the exit status says so."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .config import ExecutionConfig
from .errors import FreelunchError
from .specs import parse_spec


def put_on_path(package_root: Path) -> None:
    """Let this process and all it starts import the package from ``package_root``, whatever else is installed."""
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(package_root)]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(package_root), *others])


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Send stdout and stderr, of C code too, to a log; exit with status 1 on a foreseen failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
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
    except FreelunchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def run(compute: Callable[..., None], job: Any, **options: Any) -> None:
    """Run the stage function ``compute`` for a Snakemake job (``snakemake`` inside its script).

    The job gives ``params.spec``, ``params.code``, ``log`` and the config's ``execution`` section.
    """
    # imported here, so that the log also takes what these imports print
    with logged(Path(job.log[0])):
        from .stages.stage import Stage

        quiet_libraries()
        execution: Mapping[str, Any] = job.config.get("execution") or {}
        settings = ExecutionConfig.model_validate(execution)
        _use_threads(int(job.threads))
        stage = Stage(parse_spec(dict(job.params.spec)), Path.cwd(), settings, job.params.code)
        compute(stage, **options)


def quiet_libraries() -> None:
    """Silence progress bars and advice of transformers: they are about a way of loading models that is not ours."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _use_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)
