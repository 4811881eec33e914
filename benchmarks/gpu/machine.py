"""The machine that measurements are of; in a module of its own, for a process that leaves nothing on the card."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from typing import Any

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic", "triton")


def machine(device: str) -> dict[str, Any]:
    """What the numbers are of: device, driver, processor and versions."""
    import torch

    from freelunch.results.stage import processor

    found: dict[str, Any] = {"device": device, "cpu": processor(), "cpus": os.cpu_count()}
    found["versions"] = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found["versions"][library] = version(library)
        except ImportError:
            continue
    if device == "cuda" and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "card": properties.name, "card GiB": round(properties.total_memory / 2**30, 1), "cuda": torch.version.cuda,
        }  # fmt: skip
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            found["driver"] = subprocess.run(query, check=True, capture_output=True, text=True).stdout.split("\n")[0]
        except (OSError, subprocess.CalledProcessError):
            found["driver"] = "unknown"
    return found
