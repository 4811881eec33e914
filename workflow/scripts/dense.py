"""Rule `dense`."""

from typing import TYPE_CHECKING

from freelunch.job import run
from freelunch.plan.config import DenseConfig
from freelunch.stages.dense import dense

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

run(dense, snakemake, max_gib=DenseConfig.model_validate(snakemake.config.get("dense") or {}).max_gib)
