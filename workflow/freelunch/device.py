"""Where and how torch computes."""

from __future__ import annotations

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
