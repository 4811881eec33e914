"""Stage ``evaluate``: perplexities of one network, its drift from the dense one, and its zero-shot accuracies."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

from torch import Tensor

from freelunch.engine.streaming import Network
from freelunch.evaluate.drift import drifts
from freelunch.evaluate.perplexity import cut, perplexities
from freelunch.evaluate.text import first_tokens
from freelunch.inputs.documents import iterate_documents
from freelunch.plan.config import TextTask
from freelunch.plan.specs import EvaluationSpec
from freelunch.results.stage import Stage
from freelunch.stages.network import open_network, open_source, open_tokenizer


@dataclass(frozen=True)
class _Text:
    """Windows ``[sequences, length]`` of a split, and what its entries say about it."""

    windows: Tensor
    about: dict[str, Any]


def make(stage: Stage) -> None:
    """Run the stage: ``metrics.json``, with one entry per perplexity, two per block for every drift, and those of
    zero-shot tasks.

    Raises:
        FreelunchError: a text is too short, a zero-shot task cannot be loaded, or a metric is not finite.
    """
    spec = stage.spec
    assert isinstance(spec, EvaluationSpec)
    tokenizer = open_tokenizer(stage, spec.base)
    read = _texts(stage, spec, tokenizer, "perplexity")
    # the dense model has nothing that it could be compared with
    compared = _texts(stage, spec, tokenizer, "drift") if spec.overlays else {}
    # what cannot be asked is known before anything is computed
    # by name: its code counts only where there are such tasks (EvaluationSpec.modules)
    zero_shot = import_module("freelunch.stages.zero_shot") if spec.modules else None
    with zero_shot.asked(stage, spec) if zero_shot else nullcontext() as questions:
        network = open_network(stage, spec.base, open_source(stage, spec.base, spec.overlays))
        metrics = _perplexities(stage, network, read) if read else []
        if compared:
            metrics += _drifts(stage, open_network(stage, spec.base), network, compared)
        about = {}
        if zero_shot:
            entries, about["zero_shot"] = zero_shot.answers(stage, network, tokenizer, questions)
            metrics += entries
    stage.write_json("metrics.json", metrics)
    stage.finish(**about)


def _texts(stage: Stage, spec: EvaluationSpec, tokenizer: Any, metric: str) -> dict[str, _Text]:
    """What the tasks of a metric read, by the name that failures give it."""
    sources = spec.texts
    found: dict[str, _Text] = {}
    for task in (task for task in spec.tasks if isinstance(task, TextTask) and task.metric == metric):
        for split in task.splits:
            name = f"{task.data} {split} @ {task.length}"
            documents = iterate_documents(stage.open(sources[task.data]).file(f"{split}.jsonl"))
            tokens = first_tokens(
                (document.text for document in documents), sources[task.data].source.separator,
                # not verbose: longer than the context on purpose
                lambda text: tokenizer(text, verbose=False)["input_ids"],
                task.sequences and task.sequences * task.length,
            )  # fmt: skip
            about = {"dataset": task.data, "split": split, "length": task.length}
            found[name] = _Text(cut(tokens, task.length, task.sequences, name), about)
    return found


def _perplexities(stage: Stage, network: Network, texts: dict[str, _Text]) -> list[dict[str, Any]]:
    """One entry per text."""
    windows = {name: text.windows for name, text in texts.items()}
    results = perplexities(network, windows, stage.execution.stream_tokens)
    return [
        {"metric": f"ppl@{texts[name].about['length']}"} | texts[name].about | _plain(asdict(result))
        for name, result in results.items()
    ]


def _drifts(stage: Stage, dense: Network, network: Network, texts: dict[str, _Text]) -> list[dict[str, Any]]:
    """Two entries per text and block; ``position`` is the block."""
    windows = {name: text.windows for name, text in texts.items()}
    results = drifts(dense, network, windows, stage.execution.stream_tokens)
    entries = []
    for name, found in results.items():
        for block, drift in enumerate(found):
            at = texts[name].about | {"position": str(block)}
            local = {"value": drift.local, "stderr": drift.local_stderr}
            accumulated = {"value": drift.accumulated, "stderr": drift.accumulated_stderr}
            entries += [{"metric": "drift_local"} | at | _plain(local)]
            entries += [{"metric": "drift_accumulated"} | at | _plain(accumulated)]
    return entries


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}
