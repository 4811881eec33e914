"""Train a dense model from random weights: the part of stage ``models`` for source ``train``."""

from __future__ import annotations

import math
from typing import Any

import torch

from freelunch.engine.device import DTYPES, choose, products
from freelunch.engine.overlays import InMemory
from freelunch.engine.streaming import Network
from freelunch.errors import naming
from freelunch.evaluate.perplexity import cut, perplexities
from freelunch.inputs.calibration import sample
from freelunch.inputs.documents import read_documents
from freelunch.inputs.models import initialised, token_bytes, train_bpe
from freelunch.plan.specs import ModelSpec, training_of
from freelunch.recover.retrain import pretrain
from freelunch.results.checkpoint import Checkpoint
from freelunch.results.stage import Stage


def train_model(stage: Stage) -> tuple[Any, Any, dict[str, Any]]:
    """The trained model and its tokenizer, and what the manifest says of how that went.

    Perplexities are those that ``evaluate`` gives: of the first ``validation_sequences`` windows of a split. Per token
    they compare models of one tokenizer; bits per byte compare all.

    Raises:
        FreelunchError: the data are too short, the config is none, or the training diverges.
    """
    spec = stage.spec
    assert isinstance(spec, ModelSpec) and spec.data is not None and spec.source.train is not None
    train, data, where = spec.source.train, stage.open(spec.data), f"models.{spec.model}.train"
    dtype, device, separator = DTYPES[spec.source.dtype], choose(stage.execution.device), spec.data.source.separator
    computed = products(dtype, device, stage.execution.products)
    documents = {split: read_documents(data.file(f"{split}.jsonl")) for split in ("calibration", "validation")}
    with naming(where):
        texts = (document.text + separator for document in documents["calibration"])
        size = train.config["vocab_size"]
        assert isinstance(size, int)  # the plan has read it as facts
        tokenizer = train_bpe(texts, size)
        crops = sample(
            documents["calibration"], tokenizer, sequences=train.sequences, length=train.length, sampling="packed",
            seed=train.seed, separator=separator, name=f"data.{spec.data.data} (calibration)",
        )  # fmt: skip
        windows = {}
        for split, members in documents.items():
            joined = separator.join(document.text for document in members)
            tokens = tokenizer(joined, verbose=False)["input_ids"]
            windows[split] = cut(tokens, train.length, train.validation_sequences, f"data.{spec.data.data} ({split})")
    model = initialised(train.config, tokenizer, train.seed, torch.float32, where).to(device)
    keeper = Checkpoint(stage)
    tokens = windows | {"calibration": crops.tokens}
    trained = pretrain(model, tokens, training_of(train), dtype, computed, where, keeper, train.weight_decay)
    model.load_state_dict(trained.tensors, strict=False)  # tied weights are there once
    model = model.to("cpu", dtype)

    network = Network(model.config, InMemory(model.state_dict()), dtype, device, computed)
    found = perplexities(network, windows, stage.execution.stream_tokens)
    lengths = token_bytes(tokenizer)
    measured = {
        split: {
            "perplexity": each.value,
            "bits_per_byte": math.log2(each.value) * each.tokens / int(lengths[windows[split][:, 1:]].sum()),
            "tokens": each.tokens,
        }
        for split, each in found.items()
    }
    return model, tokenizer, {
        "training": trained.record(),
        "training_tokens": trained.fit.sequences * train.length,
        "train_seconds": round(keeper.spent + trained.fit.seconds, 3),
        "resumed_at": keeper.resumed_at,
        "measured": measured,
    }  # fmt: skip
