"""Rule `repair`."""

from typing import TYPE_CHECKING

from freelunch.job import run
from freelunch.stages.repair import repair

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

run(repair, snakemake)
