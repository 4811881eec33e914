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
EXECUTION = PLAN.config.execution

# A job asks for none only if it was told that there are none: where `auto` finds some is where it runs.
GPUS = 0 if EXECUTION.device == "cpu" else 1


def of(stage, value):
    """What a job is given, by its spec."""
    return lambda wildcards: value(SPECS[stage][wildcards.name])


def threads(spec):
    """Of a job; jobs that one was split into share what it would have."""
    wanted = stages.threads_of(spec, PLAN.config)
    if spec.siblings == 1:
        return wanted
    return max(1, min(wanted, workflow.cores // spec.siblings))


def memory(stage):
    """MB that a job asks for, by how often a cluster has tried it."""
    return lambda wildcards, attempt: stages.memory_of(
        SPECS[stage][wildcards.name], PLAN.config, attempt
    )


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
        return stages.code_of_report()

    return digest
