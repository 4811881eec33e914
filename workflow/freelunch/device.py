"""Where and how torch computes."""

from __future__ import annotations

import ctypes

import torch

from .errors import FreelunchError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def choose(name: str) -> torch.device:
    """The device of ``execution.device``; ``auto`` is the accelerator if there is one.

    Raises:
        FreelunchError: an accelerator was asked for and torch sees none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise FreelunchError("execution.device: cuda, but torch sees no accelerator; use auto or cpu")
    return torch.device(name)


def release_memory() -> None:
    """Give freed memory back to the system, where the C library can (glibc).

    It keeps what is freed between larger pieces that live on; block after block, such holes add up to the whole model.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
