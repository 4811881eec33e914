"""Rule `sparse_classifier`."""

from typing import TYPE_CHECKING

from freelunch.job import run
from freelunch.stages.sparse_classifiers import sparse_classifier

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

run(sparse_classifier, snakemake)
