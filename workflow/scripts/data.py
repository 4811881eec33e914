"""Rule `data`."""

from typing import TYPE_CHECKING

from freelunch.job import run
from freelunch.stages.prepare_data import prepare_data

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

run(prepare_data, snakemake)
