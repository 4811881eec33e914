"""Where and how torch computes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from freelunch.errors import FreelunchError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_FAST = {torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"), torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith")}
"""Instructions of a CPU, one of which makes products of a dtype faster than those of float32."""
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def choose(name: str) -> torch.device:
    """The device of ``execution.device``; ``auto`` is the accelerator if there is one.

    Raises:
        FreelunchError: an accelerator was asked for and torch sees none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise FreelunchError("execution.device: cuda, but torch sees no accelerator; use auto or cpu")
    torch.backends.cudnn.allow_tf32 = False  # convolutions in float32 are float32, as products are
    return torch.device(name)


def products(dtype: torch.dtype, device: torch.device, wanted: str = "auto") -> torch.dtype:
    """What a model of a dtype is computed in; ``wanted`` is ``execution.products``.

    ``auto`` is the model's own dtype, but for CPUs without instructions for it: there torch computes such products many
    times slower than those of float32, which are no less exact.
    """
    if wanted == "float32" or dtype == torch.float32:
        return torch.float32
    able = torch.cpu.get_capabilities()
    fast = device.type != "cpu" or any(able.get(name) for name in _FAST[dtype])
    return dtype if fast else torch.float32


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; on the CPU those that the system could still give."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 2**10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def release_memory() -> None:
    """Give freed memory back to the system, where the C library can (glibc).

    It keeps what is freed between larger pieces that live on; block after block, such holes add up to the whole model.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Have torch use only algorithms that give the same bits every time; ``wanted`` is ``execution.deterministic``.

    Raises:
        FreelunchError: inside, something was computed that has no such algorithm on the device.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    os.environ.setdefault(_WORKSPACE, ":4096:8")  # looked at when the first product runs on a GPU
    # an error where there is none: with a warning alone, attention takes the algorithm that is not deterministic
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # nothing here reads what it has not written
    try:
        yield
    except RuntimeError as error:
        if _WORKSPACE in str(error):
            raise FreelunchError(
                f"execution.deterministic: set {_WORKSPACE}=:4096:8 before Python starts; it is "
                f"{os.environ[_WORKSPACE]}, or a product ran on the GPU before it was set"
            ) from error
        if "deterministic implementation" not in str(error):
            raise
        raise FreelunchError(f"execution.deterministic: {str(error).partition('. ')[0]}") from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filled
