"""Draw the calibration and validation crops of a model and a data set."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from freelunch.errors import FreelunchError
from freelunch.inputs.calibration import Crops, sample
from freelunch.inputs.documents import read_documents
from freelunch.plan.config import Split
from freelunch.plan.specs import CalibrationSpec
from freelunch.results.artifacts import Artifact, read_json
from freelunch.results.stage import Stage
from freelunch.stages.network import open_tokenizer

VALIDATION_STREAM = 2**31
"""Added to the seed of the validation crops; seeds are smaller, so no calibration stream is ever the same."""


def make(stage: Stage) -> None:
    """Write ``tokens.safetensors`` (``calibration`` and ``validation``, ``[sequences, length]`` int32) and
    ``crops.json`` (the documents of each crop, and a hash of the tokens).

    Raises:
        FreelunchError: the data set lacks a split, or is too short, or the tokenizer does not fit the model.
    """
    spec = stage.spec
    assert isinstance(spec, CalibrationSpec)
    model, data = stage.open(spec.model), stage.open(spec.data)
    tokenizer = open_tokenizer(stage, spec.model)
    counts: dict[Split, int] = {"calibration": spec.sequences, "validation": spec.validation_sequences}
    crops = {}
    for split, sequences in counts.items():
        documents = read_documents(_split(data, spec.data.data, split))
        crops[split] = sample(
            documents,
            tokenizer,
            sequences=sequences,
            length=spec.length,
            sampling=spec.sampling,
            seed=spec.seed + (VALIDATION_STREAM if split == "validation" else 0),
            separator=spec.data.source.separator,
            name=f"data.{spec.data.data} ({split})",
        )
        _check_vocabulary(crops[split], model, spec.model.model)

    stage.write_tensors("tokens.safetensors", {split: drawn.tokens for split, drawn in crops.items()})
    hashes = {split: hashlib.sha256(drawn.tokens.numpy().tobytes()).hexdigest() for split, drawn in crops.items()}
    with stage.writing("crops.json") as part:
        listing = {split: {"sha256": hashes[split], "documents": drawn.documents} for split, drawn in crops.items()}
        part.write_text(json.dumps(listing, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    stage.finish(
        tokens={split: drawn.tokens.numel() for split, drawn in crops.items()},
        documents={split: len({name for crop in drawn.documents for name in crop}) for split, drawn in crops.items()},
        sha256=hashes,
    )


def _split(data: Artifact, name: str, split: Split) -> Path:
    if f"{split}.jsonl" not in data.files:
        raise FreelunchError(f"data.{name}.splits: has no split {split}, which calibration needs")
    return data.file(f"{split}.jsonl")


def _vocabulary(config: dict[str, Any]) -> int:
    """Rows of the embedding; composite configs say it of their language model."""
    size: int = config.get("text_config", config)["vocab_size"]
    return size


def _check_vocabulary(crops: Crops, model: Artifact, name: str) -> None:
    size, largest = _vocabulary(read_json(model.file("config.json"))), int(crops.tokens.max())
    if largest >= size:
        raise FreelunchError(f"models.{name}: its tokenizer gave token {largest}, its embedding has {size} rows")
