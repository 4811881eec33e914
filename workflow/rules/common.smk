"""The plan, and how rules look things up in it. No rule knows a parameter that is not in a spec."""

import re
from os.path import exists
from pathlib import Path

from freelunch.config import parse_config
from freelunch.costs import cost
from freelunch.errors import FreelunchError, suggest
from freelunch.facts import facts_of
from freelunch.plan import make_plan
from freelunch.provenance import code_digest, sources
from freelunch.reporting.names import FIGURE_NAMES, TABLE_NAMES
from freelunch.reporting.references import REFERENCES
from freelunch.sources import wheel_path
from freelunch.specs import STAGES
from snakemake.exceptions import WorkflowError

try:
    PLAN = make_plan(parse_config(config))
except FreelunchError as error:
    raise WorkflowError(f"config.yaml: {error}") from None

SPECS = {stage: PLAN.stage(stage) for stage in STAGES}

MODULES = {
    "pruned": "stages.prune",
    "shards": "stages.reconstruct",
    "reconstructed": "stages.reconstruct",
    "retrained": "stages.retrain",
}

# Snakemake lowers this to the cores it was given; on a cluster it is what a GPU job asks for.
TORCH_THREADS = 8

# A job asks for none only if it was told that there are none: where `auto` finds some is where it runs.
GPUS = 0 if PLAN.config.execution.device == "cpu" else 1


wildcard_constraints:
    name=r"[^/]+",
    suite="|".join(map(re.escape, PLAN.runs)),


def code(*modules):
    """Hash of the source files that importing modules of the package can run.

    Snakemake does not see edits of imported modules; as a parameter, the hash reruns what uses them and nothing else.
    """
    return code_digest({file for module in modules for file in sources(module)})


def view_code(kind, *modules):
    """The modules of a table or figure; a table says about its numbers what the figure of its name says."""
    named = {"tables": TABLE_NAMES, "figures": FIGURE_NAMES}

    def digest(wildcards):
        view = wildcards.view
        if view not in named[kind]:
            raise WorkflowError(
                f"there is no {kind[:-1]} {view!r}; {suggest(view, named[kind])}"
            )
        kinds = [kind, *(["figures"] if view in FIGURE_NAMES else [])]
        views = [f"reporting.{found}.{view}" for found in dict.fromkeys(kinds)]
        shared = ("reporting.claims", "reporting.protocol", "reporting.rows")
        return code(*views, *shared, *modules)

    return digest


def references(wildcards):
    """Published numbers, for the view that compares with them."""
    return sorted(map(str, REFERENCES.glob("*.csv"))) if wildcards.view == "published" else []


def upstream(stage):
    """Manifests of what a stage run builds on, and the wheel or the local files it reads."""

    def paths(wildcards):
        spec = SPECS[stage][wildcards.name]
        return source_files(spec) + sorted(
            {above.manifest for above in spec.upstream()}
        )

    return paths


def method_code(stage):
    """The stage's own code and, of all methods and parametrizations, only those that it uses."""

    def digest(wildcards):
        return code(MODULES[stage], *SPECS[stage][wildcards.name].modules)

    return digest


def shards(wildcards):
    """Manifests of the jobs that the windows of a reconstruction are split into, if there are several."""
    spec = SPECS["reconstructed"][wildcards.name]
    manifests = [shard.manifest for shard in spec.split(PLAN.config.execution.shards)]
    # what was trained in one job, or is under way in one, is not trained again because shards were asked for
    if list(Path(spec.folder).glob("*.json")) and not any(map(exists, manifests)):
        return []
    return manifests


def source_files(spec):
    """Files outside of the results: a key names a local path, but only its files say when they change."""
    source = getattr(spec, "source", None)
    if source is not None and source.wheel is not None:
        return [str(wheel_path(Path(), source.wheel))]
    if source is not None and source.path is not None:
        path = Path(source.path).expanduser()
        return (
            sorted(str(file) for file in path.glob("*") if file.is_file())
            if path.is_dir()
            else [str(path)]
        )
    return []


def small(wildcards):
    """Whether a model's matrices are so small that pruning them gains nothing from a second thread or a GPU."""
    model = SPECS["pruned"][wildcards.name].dense.calibration.model
    matrices = facts_of(PLAN.config, model.model).matrices.values()
    return max(rows * columns for rows, columns in matrices) < 2**22


def memory(stage):
    """Predicted memory in MB, doubled when a cluster retries the job."""

    def predicted(wildcards, attempt):
        return int(
            cost(PLAN.config, SPECS[stage][wildcards.name]).memory
            / 1e6
            * 1.25
            * 2 ** (attempt - 1)
        )

    return predicted


def evaluations(wildcards):
    """Manifests of everything whose numbers stand in the rows of a suite."""
    runs = PLAN.runs[wildcards.suite]
    specs = [
        up
        for run in runs
        for up in (run.evaluation, run.evaluation.base, *run.evaluation.overlays)
    ]
    return sorted({up.manifest for up in specs})


def suite_targets(suite):
    """Rows, tables and figures of a suite."""
    views = PLAN.config.suites[suite]
    tables = expand("results/{suite}/tables/{view}.csv", suite=suite, view=views.tables)
    figures = expand(
        "results/{suite}/figures/{view}.pdf", suite=suite, view=views.figures
    )
    return [f"results/{suite}/rows.csv", *tables, *figures]


def cores_per_shard(wildcards):
    """Threads of one shard: they share what a single job would have."""
    return max(1, min(TORCH_THREADS, workflow.cores // PLAN.config.execution.shards))
