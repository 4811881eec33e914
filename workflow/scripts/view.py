"""Rules `table` and `figure`."""

from pathlib import Path
from typing import TYPE_CHECKING

import freelunch.vision  # noqa: F401  its tables and figures
from freelunch.job import logged
from freelunch.report import plot, render, views
from freelunch.report.rows import read_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with logged(Path(snakemake.log[0])):
    rows, stem = read_rows(Path(snakemake.input.rows)), Path(snakemake.output.md).with_suffix("")
    if snakemake.rule == "table":
        render.write(views.table(snakemake.wildcards.view, rows), stem)
    else:
        drawing = views.figure(snakemake.wildcards.view, rows)
        plot.save(drawing, stem)
        caption = render.caption(drawing.view, drawing.runs, drawing.notes)
        Path(snakemake.output.md).write_text(render.paragraphs(caption), encoding="utf-8")
