"""Stage ``evaluate``: perplexities of one network, streamed over its blocks."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from torch import Tensor

from ..artifacts import Artifact
from ..documents import read_documents
from ..evaluation.perplexity import cut, perplexities
from ..specs import EvaluationSpec
from .network import open_network, open_source, open_tokenizer
from .stage import Stage


def evaluate(stage: Stage) -> None:
    """Run the stage: ``metrics.json`` with one entry per task and split."""
    spec = stage.spec
    assert isinstance(spec, EvaluationSpec)
    tokenizer = open_tokenizer(stage, spec.base)
    sources = {data.data: data for data in spec.data}
    windows: dict[str, Tensor] = {}
    about: dict[str, dict[str, Any]] = {}
    for task in spec.tasks:
        for split in task.splits:
            name = f"{task.data} {split} @ {task.length}"
            text = joined(stage.open(sources[task.data]), split, sources[task.data].source.separator)
            tokens = tokenizer(text, verbose=False)["input_ids"]  # not verbose: longer than the context on purpose
            windows[name] = cut(tokens, task.length, task.sequences, name)
            about[name] = {
                "metric": f"ppl@{task.length}", "dataset": task.data, "split": split, "length": task.length,
            }  # fmt: skip
    network = open_network(stage, spec.base, open_source(stage, spec.base, spec.overlays))
    results = perplexities(network, windows, stage.execution.stream_tokens)
    metrics = [about[name] | _plain(asdict(result)) for name, result in results.items()]
    stage.write_json("metrics.json", metrics)
    stage.finish()


def joined(data: Artifact, split: str, separator: str) -> str:
    """The text of a split, documents joined."""
    return separator.join(document.text for document in read_documents(data.file(f"{split}.jsonl")))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}
