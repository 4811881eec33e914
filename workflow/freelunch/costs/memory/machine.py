"""What memory depends on of the machine that jobs run on, known without torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ...accelerators import visible
from ...plan.config import ExecutionConfig
from ...plan.facts import DTYPE_BYTES

_FAST = {"bfloat16": {"avx512_bf16", "amx_bf16", "bf16"}, "float16": {"avx512_fp16", "amx_fp16", "asimdhp"}}
"""Flags of CPUs that have products of a dtype, as Linux calls what ``device.products`` asks torch for."""


@dataclass(frozen=True)
class Machine:
    """Whether products are computed on an accelerator, and how many bytes their numbers have, by dtype of a model."""

    accelerator: bool
    products: dict[str, int]


def machine_of(execution: ExecutionConfig) -> Machine:
    """The machine of ``execution``; with ``device: auto`` the one that this is run on."""
    device = execution.device
    accelerator = device == "cuda" or (device == "auto" and bool(visible(os.environ)))
    fast = DTYPE_BYTES.keys() if accelerator else _fast()
    if execution.products == "float32":
        fast = {"float32"}
    return Machine(accelerator, {dtype: width if dtype in fast else 4 for dtype, width in DTYPE_BYTES.items()})


@cache
def _fast(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Dtypes that the CPU has products of."""
    try:
        flags = set(cpuinfo.read_text(encoding="utf-8").split())
    except OSError:
        flags = set()
    return {"float32"} | {dtype for dtype, names in _FAST.items() if names & flags}
