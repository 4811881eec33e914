"""Rule `figure`."""

from pathlib import Path
from typing import TYPE_CHECKING

from freelunch.job import logged
from freelunch.reporting import about, draw
from freelunch.reporting.claims import restructured
from freelunch.reporting.rows import read_rows
from freelunch.reporting.style import save

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with logged(Path(snakemake.log[0])):
    rows = read_rows(Path(snakemake.input.rows))
    save(draw(snakemake.wildcards.view, rows), Path(snakemake.output.pdf).with_suffix(""))
    caption = restructured(about(snakemake.wildcards.view, rows))
    Path(snakemake.output.rst).write_text(caption, encoding="utf-8")
