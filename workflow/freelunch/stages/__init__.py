"""The stages, each in a module by its name: ``make(stage)`` makes the result of a spec. Here is what its rule asks for.

Imports no stage, and so neither torch nor transformers, before one is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from freelunch.costs import cost
from freelunch.inputs.questions import FOLDER
from freelunch.inputs.sources import local_files, wheel_path
from freelunch.plan.config import Config
from freelunch.plan.spec import MeasuredSpec, Spec
from freelunch.plan.specs import EvaluationSpec, ShardSpec
from freelunch.results.code import PACKAGE, code_digest

TORCH_THREADS = 8
"""Of a job with torch on a cluster; Snakemake lowers it to the cores that there are."""
SNAKEMAKE_MB = 300
"""What a job on a cluster takes besides its stage: a Snakemake starts the stage's process there, and waits for it."""


def function_of(spec: Spec) -> Callable[..., None]:
    """The function that makes a spec's result; imports torch."""
    make: Callable[..., None] = importlib.import_module(f"freelunch.stages.{spec.stage}").make
    return make


def code_of(spec: Spec) -> str:
    """Hash of the code that a stage runs for a spec: its module, the methods it uses, local tasks that it asks."""
    if isinstance(spec, ShardSpec):
        spec = spec.reconstructed  # takes over what was made by its own code
    asked = isinstance(spec, EvaluationSpec) and bool(spec.questions)
    return _digest((f"stages.{spec.stage}", *spec.modules), asked)


@cache  # the same for most jobs of a stage, of which there may be thousands
def _digest(modules: tuple[str, ...], asked: bool) -> str:
    return code_digest(modules, sorted(FOLDER.glob("*.yaml")) if asked else ())


def code_of_rows(specs: Iterable[MeasuredSpec]) -> str:
    """Hash of the code that makes the rows of a suite."""
    return code_digest({"stages.collect", *(spec.rows.split(":")[0] for spec in specs)})


def code_of_report() -> str:
    """Hash of the files that tables, figures and the report are made by, and of the declarations of vision's."""
    report, vision = PACKAGE / "report", PACKAGE / "vision"
    files = [path for kind in ("py", "yaml", "j2") for path in sorted(report.glob(f"*.{kind}"))]
    return code_digest(["stages.report"], [*files, vision / "__init__.py", vision / "classifier_views.py"])


def inputs_of(spec: Spec, shards: int) -> list[str]:
    """What a job waits for: a wheel or local files, the manifests of what it builds on and of its shards."""
    source = spec.origin
    files = local_files(Path(), source) if source else []
    if source and source.wheel:
        files.append(wheel_path(Path(), source.wheel))
    parts = [part.manifest for part in spec.split(shards)]
    # what was trained in one job, or is under way in one, is not trained again because shards were asked for
    if any(Path(spec.folder).glob("*.json")) and not any(Path(part).exists() for part in parts):
        parts = []
    return [*map(str, files), *sorted({above.manifest for above in spec.upstream()}), *parts]


def threads_of(spec: Spec, config: Config) -> int:
    """One where more gain nothing."""
    small = config.execution.device == "cpu" and spec.small(cost(spec, config).operations)
    return TORCH_THREADS if spec.threaded and not small else 1


def memory_of(spec: Spec, config: Config, attempt: int) -> int:
    """MB by prediction and a quarter, doubled whenever a cluster tries the job again."""
    return int((SNAKEMAKE_MB + cost(spec, config).host / 1e6 * 1.25) * 2 ** (attempt - 1))
