"""Rule `classifier`."""

from typing import TYPE_CHECKING

from freelunch.job import run
from freelunch.stages.classifiers import train_classifier

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

run(train_classifier, snakemake)
