"""Rule `retrain`."""

from typing import TYPE_CHECKING

from freelunch.job import run
from freelunch.stages.retrain import retrain

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

run(retrain, snakemake)
