"""Rule `fetch`."""

from pathlib import Path
from typing import TYPE_CHECKING

from freelunch.config import Wheel
from freelunch.job import logged
from freelunch.sources import fetch_wheel

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with logged(Path(snakemake.log[0])):
    fetch_wheel(Wheel.model_validate(dict(snakemake.params.wheel)), Path(snakemake.output[0]))
