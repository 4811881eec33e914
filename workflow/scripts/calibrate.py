"""Rule `calibrate`."""

from typing import TYPE_CHECKING

from freelunch.job import run
from freelunch.stages.calibrate import calibrate

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

run(calibrate, snakemake)
