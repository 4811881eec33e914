"""The rule of every stage."""

from typing import TYPE_CHECKING

from freelunch.job import run

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

run(snakemake)
