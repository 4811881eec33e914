"""Rule `reconstruct`."""

from typing import TYPE_CHECKING

from freelunch.job import run
from freelunch.stages.reconstruct import reconstruct

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

run(reconstruct, snakemake)
