"""freelunch: calibrate, cache, prune, recover, evaluate, draw.

snakemake --cores all            the default suite of config.yaml
snakemake --cores all SUITE      another suite
snakemake -n                     what would run
"""

import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.20")

# The package beside this file is the one that runs, here and in every job.
PACKAGE_ROOT = Path(workflow.basedir) / "workflow"
sys.path.insert(0, str(PACKAGE_ROOT))

from freelunch.job import put_on_path

put_on_path(PACKAGE_ROOT)


configfile: str(Path(workflow.basedir) / "config.yaml")


include: "workflow/rules/common.smk"


rule all:
    input:
        suite_targets(PLAN.config.default_suite),


onstart:
    try:
        check_writable(Path("results"))
    except FreelunchError as error:
        raise WorkflowError(str(error)) from None


include: "workflow/rules/suites.smk"
include: "workflow/rules/prepare.smk"
include: "workflow/rules/calibrate.smk"
include: "workflow/rules/dense.smk"
include: "workflow/rules/prune.smk"
include: "workflow/rules/recovery.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/export.smk"
include: "workflow/rules/vision.smk"
include: "workflow/rules/report.smk"
