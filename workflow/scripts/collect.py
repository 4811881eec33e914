"""Rule `collect`."""

from pathlib import Path
from typing import TYPE_CHECKING

from freelunch.job import logged
from freelunch.specs import EvaluationSpec
from freelunch.stages.collect import collect

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with logged(Path(snakemake.log[0])):
    specs = [EvaluationSpec.model_validate(dict(raw)) for raw in snakemake.params.evaluations]
    collect(snakemake.wildcards.suite, specs, Path.cwd(), Path(snakemake.output.csv).parent)
