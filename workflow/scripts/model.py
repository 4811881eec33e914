"""Rule `model`."""

from typing import TYPE_CHECKING

from freelunch.job import run
from freelunch.stages.prepare_model import prepare_model

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

run(prepare_model, snakemake)
