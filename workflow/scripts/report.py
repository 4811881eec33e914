"""The rules of `report.smk`; each imports what it needs alone."""

from pathlib import Path
from typing import TYPE_CHECKING

import freelunch.vision  # noqa: F401  its tables and figures
from freelunch.job import logged, plan_of

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with logged(Path(snakemake.log[0])):
    target = Path(snakemake.output[0])
    if snakemake.rule == "collect":
        from freelunch.stages.collect import collect

        suite = snakemake.wildcards.suite
        collect(suite, [run.evaluation for run in plan_of(snakemake).runs[suite]], Path.cwd(), target.parent)
    elif snakemake.rule == "report":
        from freelunch.stages.report import report

        report(plan_of(snakemake), snakemake.wildcards.suite, Path.cwd(), list(snakemake.params.configs), target)
    else:
        from freelunch.report import plot, render, views
        from freelunch.report.rows import read_rows

        rows, stem = read_rows(Path(snakemake.input.rows)), target.with_suffix("")
        if snakemake.rule == "table":
            render.write(views.table(snakemake.wildcards.view, rows), stem)
        else:
            drawing = views.figure(snakemake.wildcards.view, rows)
            plot.save(drawing, stem)
            caption = render.caption(drawing.view, drawing.runs, drawing.notes)
            stem.with_suffix(".md").write_text(render.paragraphs(caption), encoding="utf-8")
