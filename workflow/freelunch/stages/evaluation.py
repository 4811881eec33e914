"""Stage ``evaluate``: perplexities of one network, its drift from the dense one, and its zero-shot accuracies."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import asdict
from importlib import import_module
from typing import Any

from torch import Tensor

from freelunch.evaluate.drift import drifts
from freelunch.evaluate.perplexity import cut, first_tokens, perplexities
from freelunch.inputs.documents import iterate_documents
from freelunch.plan.config import TextTask
from freelunch.plan.specs import EvaluationSpec
from freelunch.results.stage import Stage
from freelunch.stages.network import open_network, open_source, open_tokenizer


def make(stage: Stage) -> None:
    """Run the stage: ``metrics.json``, with one entry per perplexity, two per block for every drift, and those of
    zero-shot tasks.

    Raises:
        FreelunchError: a text is too short, a zero-shot task cannot be loaded, or a metric is not finite.
    """
    spec, stream_tokens = stage.spec, stage.execution.stream_tokens
    assert isinstance(spec, EvaluationSpec)
    tokenizer = open_tokenizer(stage, spec.base)
    abouts: dict[str, dict[str, Any]] = {}
    texts = _windows(stage, spec, tokenizer, "perplexity", abouts)
    # the dense model has nothing that it could be compared with
    compared = _windows(stage, spec, tokenizer, "drift", abouts) if spec.overlays else {}
    # by name: its code counts only where there are such tasks (EvaluationSpec.modules)
    zero_shot = import_module("freelunch.evaluate.zero_shot") if spec.modules else None
    metrics: list[dict[str, Any]] = []
    about = {}
    # what cannot be asked is known before anything is computed
    with zero_shot.asked(stage, spec) if zero_shot else nullcontext() as questions:
        network = open_network(stage, spec.base, open_source(stage, spec.base, spec.overlays))
        if texts:
            for name, result in perplexities(network, texts, stream_tokens).items():
                metrics.append({"metric": f"ppl@{abouts[name]['length']}"} | abouts[name] | _plain(asdict(result)))
        if compared:
            for name, blocks in drifts(open_network(stage, spec.base), network, compared, stream_tokens).items():
                for block, drift in enumerate(blocks):
                    at, values = abouts[name] | {"position": str(block)}, _plain(asdict(drift))
                    for kind in ("local", "accumulated"):
                        value = {"value": values[kind], "stderr": values[f"{kind}_stderr"]}
                        metrics.append({"metric": f"drift_{kind}"} | at | value)
        if zero_shot:
            entries, about["zero_shot"] = zero_shot.answers(stage, network, tokenizer, questions)
            metrics += entries
    stage.write_json("metrics.json", metrics)
    stage.finish(**about)


def _windows(
    stage: Stage, spec: EvaluationSpec, tokenizer: Any, metric: str, abouts: dict[str, dict[str, Any]]
) -> dict[str, Tensor]:
    """Windows ``[sequences, length]`` for the tasks of a metric, by the name that failures give them.

    What their entries say about them is added to ``abouts``.
    """
    windows: dict[str, Tensor] = {}
    for task in (task for task in spec.tasks if isinstance(task, TextTask) and task.metric == metric):
        for split in task.splits:
            name, source = f"{task.data} {split} @ {task.length}", spec.texts[task.data]
            documents = iterate_documents(stage.open(source).file(f"{split}.jsonl"))
            tokens = first_tokens(
                (document.text for document in documents), source.source.separator,
                # not verbose: longer than the context on purpose
                lambda text: tokenizer(text, verbose=False)["input_ids"],
                task.sequences and task.sequences * task.length,
            )  # fmt: skip
            windows[name] = cut(tokens, task.length, task.sequences, name)
            abouts[name] = {"dataset": task.data, "split": split, "length": task.length}
    return windows


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}
