"""The plan, and how rules look things up in it. No rule knows a parameter that is not in a spec."""

import re
from hashlib import sha256
from os.path import exists, relpath
from pathlib import Path

from freelunch.results.artifacts import check_writable
from freelunch.plan.config import parse_config
from freelunch.costs import cost
from freelunch.errors import FreelunchError
from freelunch.plan.facts import facts_of
from freelunch.plan.plan import make_plan, resolved
from freelunch.results.code import code_digest
from freelunch.report.views import REFERENCES, find
from freelunch.inputs.sources import wheel_path
from freelunch.plan.spec import STAGES
from freelunch.stages import code_of
from freelunch.plan.yaml_files import read_yaml
from snakemake.exceptions import WorkflowError

# Snakemake shows this kind of exception without a traceback.
try:
    if workflow.is_main_process:
        # it keeps its notes there, also in a dry run
        check_writable(Path(".snakemake"))
        # it has read these, and taken the last of keys that are there twice
        for path in map(Path, workflow.configfiles):
            read_yaml(path)
except FreelunchError as error:
    raise WorkflowError(str(error)) from None

try:
    PLAN = make_plan(parse_config(config))
except FreelunchError as error:
    raise WorkflowError(f"config.yaml: {error}") from None

SPECS = {stage: PLAN.stage(stage) for stage in STAGES}

# Snakemake lowers this to the cores it was given; on a cluster it is what a GPU job asks for.
TORCH_THREADS = 8

# A job asks for none only if it was told that there are none: where `auto` finds some is where it runs.
GPUS = 0 if PLAN.config.execution.device == "cpu" else 1


# The default profile's one GPU is that of this machine: on a cluster it bounds what one job gets, not all jobs together.
resource_scopes:
    gpu="local",


wildcard_constraints:
    name=r"[^/]+",
    suite="|".join(map(re.escape, PLAN.runs)),


def code(*modules):
    """Hash of what modules of the package compute.

    Snakemake does not see edits of imported modules; as a parameter, the hash reruns what uses them and nothing else.
    """
    return code_digest(modules)


# Files that every table, figure and report is made by, and the declarations of the second paper's.
REPORT = [
    path
    for folder in ("report", "vision")
    for path in (PACKAGE_ROOT / "freelunch" / folder).glob("*")
    if folder == "report" or path.stem in ("__init__", "classifier_views")
    if path.suffix in (".py", ".yaml", ".j2")
]


def view_code(kind):
    """The code of tables or figures: the report as a whole."""

    def digest(wildcards):
        try:
            find(kind, wildcards.view)
        except FreelunchError as error:
            raise WorkflowError(str(error)) from None
        return code_digest((), REPORT)

    return digest


def references(wildcards):
    """Published numbers, for the view that compares with them."""
    return (
        sorted(map(str, REFERENCES.glob("*.csv")))
        if wildcards.view == "published"
        else []
    )


def upstream(stage):
    """Manifests of what a stage run builds on, and the wheel or the local files it reads."""

    def paths(wildcards):
        spec = SPECS[stage][wildcards.name]
        return source_files(spec) + sorted(
            {above.manifest for above in spec.upstream()}
        )

    return paths


def stage_code(stage):
    """Of the code that a stage runs: of all methods and ways to make a model, only what its spec uses."""

    def digest(wildcards):
        return code_of(SPECS[stage][wildcards.name])

    return digest


def evaluation_minutes(wildcards):
    """Zero-shot tasks of a large model take longer than all else that is measured."""
    tasks = SPECS["evaluation"][wildcards.name].tasks
    return 1440 if any(task.metric == "zero_shot" for task in tasks) else 480


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
    source = spec.origin
    if source is not None and source.wheel is not None:
        return [str(wheel_path(Path(), source.wheel))]
    if source is not None and source.path is not None:
        path = Path(source.path).expanduser()
        return (
            sorted(str(file) for file in path.rglob("*") if file.is_file())
            if path.is_dir()
            else [str(path)]
        )
    return []


def largest_matrix(model):
    """Weights of the largest matrix in a block of a model."""
    matrices = facts_of(PLAN.config, model.model).matrices.values()
    return max(rows * columns for rows, columns in matrices)


def small(wildcards):
    """Whether a model's matrices are so small that pruning them gains nothing from a second thread or a GPU."""
    return largest_matrix(SPECS["pruned"][wildcards.name].base) < 2**22


def torch_threads(stage):
    """One where there is no GPU and matrices are so small that jobs side by side gain more than threads of one job."""

    def threads(wildcards):
        spec = SPECS[stage][wildcards.name]
        tiny = largest_matrix(spec if stage == "models" else spec.base) < 2**19
        return 1 if tiny and GPUS == 0 else TORCH_THREADS

    return threads


def classifier_threads(stage):
    """One where there is no GPU and images are so few that jobs side by side gain more than threads of one job."""

    def threads(wildcards):
        work = cost(SPECS[stage][wildcards.name], PLAN.config).operations
        return 1 if work < 1e15 and GPUS == 0 else TORCH_THREADS

    return threads


def trained(wildcards):
    """Whether a model is trained from random weights, not fetched."""
    return SPECS["models"][wildcards.name].source.train is not None


# What a job on a cluster takes besides its stage: a Snakemake starts the stage's process there, and waits for it.
SNAKEMAKE_MB = 300


def memory(stage):
    """Predicted memory in MB, doubled when a cluster retries the job."""

    def predicted(wildcards, attempt):
        stage_mb = cost(SPECS[stage][wildcards.name], PLAN.config).host / 1e6 * 1.25
        return int((SNAKEMAKE_MB + stage_mb) * 2 ** (attempt - 1))

    return predicted


def evaluations(wildcards):
    """Manifests of everything whose numbers stand in the rows of a suite."""
    runs = PLAN.runs[wildcards.suite]
    return sorted({up.manifest for run in runs for up in run.read})


def families(wildcards):
    """Families of the models of a suite: they stand in the rows, and in no key."""
    specs = PLAN.needed(wildcards.suite)
    found = {spec.model: spec.source.family for spec in specs if spec.stage == "models"}
    return [f"{model}: {family}" for model, family in found.items() if family]


def exports(suite):
    """Manifests of all pruned and recovered networks of a suite as models."""
    return [spec.manifest for spec in PLAN.exports(suite)]


def views(wildcards):
    """Tables and figures of a suite."""
    found = PLAN.config.suites[wildcards.suite]
    tables = expand("results/{{suite}}/tables/{view}.csv", view=found.tables)
    figures = expand("results/{{suite}}/figures/{view}.svg", view=found.figures)
    return [path.format(suite=wildcards.suite) for path in tables + figures]


def report_code(wildcards):
    """The report's own code, and that of the tables and captions that stand in it."""
    return code_digest(["stages.report"], REPORT)


def suite_digest(wildcards):
    """Hash of what the report shows of the config: a key has the parameters of runs, not what they are called."""
    return sha256(resolved(PLAN, wildcards.suite).encode()).hexdigest()[:16]


def suite_targets(suite):
    """Rows and report of a suite, which has its tables and figures."""
    return [f"results/{suite}/rows.csv", f"results/{suite}/report.html"]


def cores_per_shard(wildcards):
    """Threads of one shard: they share what a single job would have."""
    return max(1, min(TORCH_THREADS, workflow.cores // PLAN.config.execution.shards))
