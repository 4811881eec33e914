"""Rule `evaluate`."""

from typing import TYPE_CHECKING

from freelunch.job import run
from freelunch.stages.evaluate import evaluate

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

run(evaluate, snakemake)
