"""Rule `prune`."""

from typing import TYPE_CHECKING

from freelunch.job import run
from freelunch.stages.prune import prune

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

run(prune, snakemake)
