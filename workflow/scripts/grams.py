"""Rule `grams`."""

from typing import TYPE_CHECKING

from freelunch.job import run
from freelunch.stages.grams import grams

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

run(grams, snakemake)
