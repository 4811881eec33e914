"""Rule `table`."""

from pathlib import Path
from typing import TYPE_CHECKING

from freelunch.job import logged
from freelunch.reporting import tabulate
from freelunch.reporting.claims import restructured
from freelunch.reporting.rendering import write
from freelunch.reporting.rows import read_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with logged(Path(snakemake.log[0])):
    rows = read_rows(Path(snakemake.input.rows))
    table = tabulate(snakemake.wildcards.view, rows)
    write(table, Path(snakemake.output.csv).with_suffix(""))
    Path(snakemake.output.rst).write_text(restructured(table.about), encoding="utf-8")
