"""The GPUs and the CPU of a machine, without torch; where there are several GPUs, each job takes one for itself.

Snakemake counts GPUs (``--resources gpu=4``), but does not say which one a job may use. A cluster does: its jobs see no
GPU but their own, and there is nothing to choose.
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_FAST = {"bfloat16": {"avx512_bf16", "amx_bf16", "bf16"}, "float16": {"avx512_fp16", "amx_fp16", "asimdhp"}}
"""Flags of CPUs that have products of a dtype, as Linux calls what ``device.products`` asks torch for."""
_HELD: list[IO[str]] = []
"""Locks of this process; the system lifts them when it ends, however it ends."""


def visible(environment: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """Names of the GPUs that a process may use: as its environment lists them, else by number."""
    if _VISIBLE in environment:
        return [name.strip() for name in environment[_VISIBLE].split(",") if name.strip()]
    count = sum(path.name.removeprefix("nvidia").isdigit() for path in devices.glob("nvidia*"))
    return [str(index) for index in range(count)]


def has_accelerator(device: str) -> bool:
    """Whether ``execution.device`` is an accelerator; with ``auto``, whether this machine has one."""
    return device == "cuda" or (device == "auto" and bool(visible(os.environ)))


def product_bytes(dtype: str, device: str, products: str) -> int:
    """Bytes of a number in ``device.products`` of a model's dtype, by ``execution.device`` and ``.products``."""
    fast = products != "float32" and (has_accelerator(device) or dtype in fast_dtypes())
    return 2 if fast and dtype != "float32" else 4


@cache
def fast_dtypes(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Dtypes of 16 bits that the CPU has products of."""
    try:
        flags = set(cpuinfo.read_text(encoding="utf-8").split())
    except OSError:
        flags = set()
    return frozenset(dtype for dtype, names in _FAST.items() if names & flags)


def claim(names: Sequence[str], locks: Path) -> str | None:
    """Take the first of these GPUs that no other process has, until this process ends; None if others have them all.

    ``locks`` is a folder with a file for each, by which the processes of a machine know of each other.
    """
    locks.mkdir(parents=True, exist_ok=True)
    for name in names:
        handle = (locks / name.replace(os.sep, "_")).open("w")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.close()
            continue
        _HELD.append(handle)
        return name
    return None


def take_one() -> None:
    """Let this process see one GPU only, where there are several. To be called before torch looks for any."""
    names = visible(os.environ)
    if len(names) < 2:
        return
    name = claim(names, Path(tempfile.gettempdir()) / f"freelunch-gpus-{os.getuid()}")
    if name is None:
        log.warning("other jobs have all %d GPUs, and this one shares the first; lower `--resources gpu`", len(names))
    os.environ[_VISIBLE] = name or names[0]
