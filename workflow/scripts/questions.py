"""Rule `questions`."""

from typing import TYPE_CHECKING

from freelunch.job import run
from freelunch.stages.questions import questions

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

run(questions, snakemake)
