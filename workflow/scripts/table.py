"""Rule `table`."""

from pathlib import Path
from typing import TYPE_CHECKING

from freelunch.job import logged
from freelunch.reporting import tabulate
from freelunch.reporting.rendering import write
from freelunch.reporting.rows import read_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with logged(Path(snakemake.log[0])):
    rows = read_rows(Path(snakemake.input.rows))
    write(tabulate(snakemake.wildcards.view, rows), Path(snakemake.output.csv).with_suffix(""))
