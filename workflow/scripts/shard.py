"""Rule `shard`."""

from typing import TYPE_CHECKING

from freelunch.job import run
from freelunch.stages.reconstruct import shard

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

run(shard, snakemake)
