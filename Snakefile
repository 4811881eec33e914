"""freelunch: calibrate, cache, prune, recover, evaluate, draw.

snakemake --cores all            the default suite of config.yaml
snakemake --cores all SUITE      another suite
snakemake -n                     what would run
"""

import re
import sys
from hashlib import sha256
from os.path import relpath
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

min_version("9.20")

# The package beside this file is the one that runs, here and in every job.
PACKAGE_ROOT = Path(workflow.basedir) / "workflow"
sys.path.insert(0, str(PACKAGE_ROOT))

from freelunch import stages
from freelunch.errors import FreelunchError
from freelunch.job import put_on_path
from freelunch.plan.config import parse_config
from freelunch.plan.plan import make_plan, resolved
from freelunch.plan.spec import STAGES
from freelunch.plan.yaml_files import read_yaml
from freelunch.report.views import REFERENCES, find
from freelunch.results.artifacts import check_writable

put_on_path(PACKAGE_ROOT)


configfile: str(Path(workflow.basedir) / "config.yaml")


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


# The default profile's one GPU is that of this machine: on a cluster it bounds what one job gets, not all jobs together.
resource_scopes:
    gpu="local",


wildcard_constraints:
    name=r"[^/]+",
    suite="|".join(map(re.escape, PLAN.runs)),


# By name: rows and report of a suite, which has its tables and figures, and all of its networks as models.
TARGETS = {}
for suite in PLAN.runs:
    TARGETS[suite] = [f"results/{suite}/rows.csv", f"results/{suite}/report.html"]
    TARGETS[f"export-{suite}"] = [spec.manifest for spec in PLAN.exports(suite)]
DEFAULT = PLAN.config.default_suite
TARGETS = {"all": TARGETS[DEFAULT], "export": TARGETS[f"export-{DEFAULT}"]} | TARGETS

for target, files in TARGETS.items():

    rule:
        name:
            target
        input:
            files,


onstart:
    try:
        check_writable(Path("results"))
    except FreelunchError as error:
        raise WorkflowError(str(error)) from None


include: "workflow/rules/common.smk"
include: "workflow/rules/stages.smk"
include: "workflow/rules/report.smk"
