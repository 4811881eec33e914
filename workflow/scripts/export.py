"""Rule `export`."""

from typing import TYPE_CHECKING

from freelunch.job import run
from freelunch.stages.export import run_export

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

run(run_export, snakemake)
