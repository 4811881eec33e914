"""Overlays, read back and merged into whole models by hand."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file

from freelunch.engine.overlays import unpack
from freelunch.results.artifacts import Artifact


def tensors(artifact: Artifact, prefix: str = "") -> dict[str, torch.Tensor]:
    """Tensors of the files whose names start with ``prefix``, folders within left out."""
    found: dict[str, torch.Tensor] = {}
    for name in artifact.files:
        if name.endswith(".safetensors") and "/" not in name and name.startswith(prefix):
            found |= load_file(artifact.file(name))
    return found


def lay_over(model: Any, *artifacts: Artifact) -> None:
    """Merge overlays into a whole model in memory, by hand."""
    modules = dict(model.named_modules())
    for artifact in artifacts:
        for prefix in ("changed-", "masks-", "window-"):
            for name, tensor in tensors(artifact, prefix).items():
                owner, kind = name.rsplit(".", 1)
                if kind == "bias" and modules[owner].bias is None:
                    modules[owner].bias = torch.nn.Parameter(tensor.clone())
                    continue
                parameter = model.get_parameter(name)
                with torch.no_grad():
                    if prefix == "masks-":
                        parameter.mul_(unpack(tensor, parameter.shape[1]))
                    else:
                        parameter.copy_(tensor)
