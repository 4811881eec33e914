"""Rule `images`."""

from typing import TYPE_CHECKING

from freelunch.job import run
from freelunch.stages.images import prepare_images

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

run(prepare_images, snakemake)
