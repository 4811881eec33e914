"""Rule `report`."""

from pathlib import Path
from typing import TYPE_CHECKING

from freelunch.job import logged
from freelunch.plan.config import parse_config
from freelunch.plan.plan import make_plan
from freelunch.stages.report import report

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with logged(Path(snakemake.log[0])):
    plan = make_plan(parse_config(snakemake.config))
    configs = list(snakemake.params.configs)
    report(plan, snakemake.wildcards.suite, Path.cwd(), configs, Path(snakemake.output[0]))
