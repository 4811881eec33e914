"""Rule `recover`."""

from typing import TYPE_CHECKING

from freelunch.job import run
from freelunch.stages.recover import recover

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

run(recover, snakemake)
