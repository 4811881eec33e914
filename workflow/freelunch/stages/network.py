"""Open a dense, pruned or recovered model for streaming, from artifacts whose checksums hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig

from ..artifacts import Artifact
from ..device import DTYPES, choose
from ..models import load_tokenizer
from ..overlays import Masked, Replaced, SafetensorsFiles, TensorSource
from ..specs import ModelSpec, PrunedSpec, ReconstructedSpec
from ..streaming import Network
from .stage import Stage


def tensors(artifact: Artifact, prefix: str = "") -> SafetensorsFiles:
    """All tensors of an artifact's safetensors files whose names start with ``prefix``."""
    names = [name for name in artifact.files if name.endswith(".safetensors") and name.startswith(prefix)]
    return SafetensorsFiles(artifact.file(name) for name in names)


def open_tokenizer(stage: Stage, model: ModelSpec) -> Any:
    """The tokenizer of a model, every file of which was checked."""
    artifact = stage.open(model)
    for name in artifact.files:
        if not name.endswith(".safetensors"):
            artifact.file(name)
    return load_tokenizer(artifact.folder)


def open_network(stage: Stage, model: ModelSpec, overlays: Sequence[PrunedSpec | ReconstructedSpec] = ()) -> Network:
    """The network of a model with overlays applied in order."""
    artifact = stage.open(model)
    source: TensorSource = tensors(artifact)
    for overlay in overlays:
        files = tensors(stage.open(overlay))
        source = Masked(source, files) if isinstance(overlay, PrunedSpec) else Replaced(source, files)
    config = AutoConfig.from_pretrained(artifact.file("config.json").parent, local_files_only=True)
    return Network(config, source, DTYPES[model.source.dtype], choose(stage.execution.device))
