"""Rule `dense`."""

from typing import TYPE_CHECKING

from freelunch.config import DenseConfig
from freelunch.job import run
from freelunch.stages.dense import dense

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

run(dense, snakemake, max_gib=snakemake.config.get("dense", {}).get("max_gib", DenseConfig().max_gib))
