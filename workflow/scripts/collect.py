"""Rule `collect`."""

from pathlib import Path
from typing import TYPE_CHECKING

from freelunch.job import logged
from freelunch.plan.config import parse_config
from freelunch.plan.plan import make_plan
from freelunch.stages.collect import collect

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with logged(Path(snakemake.log[0])):
    suite = snakemake.wildcards.suite
    runs = make_plan(parse_config(snakemake.config)).runs[suite]
    collect(suite, [run.evaluation for run in runs], Path.cwd(), Path(snakemake.output.csv).parent)
