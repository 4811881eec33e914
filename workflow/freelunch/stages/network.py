"""Open a dense, pruned or recovered model for streaming, from artifacts whose checksums hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig

from freelunch.engine.device import DTYPES, choose, products
from freelunch.engine.overlays import Masked, Replaced, TensorSource
from freelunch.engine.streaming import Network
from freelunch.inputs.models import load_tokenizer
from freelunch.plan.specs import ModelSpec, OverlaySpec
from freelunch.results.stage import Stage

MASKS, CHANGED, TRAINED = "masks-", "changed-", "window-"
"""What the files of an overlay start with: packed masks, weights and biases changed by pruning, trained tensors."""


def open_tokenizer(stage: Stage, model: ModelSpec) -> Any:
    """The tokenizer of a model, every file of which was checked."""
    artifact = stage.open(model)
    for name in artifact.files:
        if not name.endswith(".safetensors"):
            artifact.file(name)
    return load_tokenizer(artifact.folder)


def open_source(stage: Stage, model: ModelSpec, overlays: Sequence[OverlaySpec]) -> TensorSource:
    """The tensors of a model with overlays applied in order."""
    source: TensorSource = stage.tensors(model)
    for overlay in overlays:
        source = Masked(Replaced(source, stage.tensors(overlay, CHANGED)), stage.tensors(overlay, MASKS))
        source = Replaced(source, stage.tensors(overlay, TRAINED))
    return source


def open_network(stage: Stage, model: ModelSpec, source: TensorSource | None = None) -> Network:
    """The network of a model, with its own tensors or those of another source."""
    artifact = stage.open(model)
    config = AutoConfig.from_pretrained(artifact.file("config.json").parent, local_files_only=True)
    source = stage.tensors(model) if source is None else source
    dtype, device = DTYPES[model.source.dtype], choose(stage.execution.device)
    return Network(config, source, dtype, device, products(dtype, device, stage.execution.products))
