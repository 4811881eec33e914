"""Zero-shot tasks of an evaluation: which are asked, of what kind of model, and the entries they give."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freelunch.engine.device import free_memory
from freelunch.engine.streaming import Network
from freelunch.evaluate.harness import about_tasks, ask, load_tasks, mean_accuracy
from freelunch.evaluate.sizes import LARGEST, whole_bytes
from freelunch.inputs.questions import QUESTION_SETS
from freelunch.plan.config import ZeroShotTask
from freelunch.plan.facts import Facts
from freelunch.plan.specs import EvaluationSpec
from freelunch.results.stage import Stage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """Tasks of lm-eval, loaded, with the entry of the config that names them."""

    entry: ZeroShotTask
    tasks: dict[str, Any]


@contextmanager
def asked(stage: Stage, spec: EvaluationSpec) -> Iterator[list[Asked]]:
    """The zero-shot tasks of an evaluation, loaded; usable while the context is open.

    Raises:
        FreelunchError: a task cannot be loaded; says what would help.
    """
    entries = [entry for entry in spec.tasks if isinstance(entry, ZeroShotTask)]
    with tempfile.TemporaryDirectory(dir=stage.folder, prefix="scratch-") as folder:
        found = []
        for entry in entries:
            questions = {}
            if entry.data is not None:
                artifact = stage.open(spec.questions[entry.data])
                local = [name for name in entry.tasks if name in QUESTION_SETS]
                questions = {name: artifact.file(f"{name}.jsonl").absolute() for name in local}
            tasks = load_tasks(entry.tasks, questions, Path(folder), entry.shots, stage.execution.run_model_code)
            found.append(Asked(entry, tasks))
        yield found


def answers(
    stage: Stage, network: Network, tokenizer: Any, found: list[Asked]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Run all tasks: their entries in ``metrics.json``, and what the manifest says of them."""
    run_code, scores = stage.execution.run_model_code, []
    about: dict[str, Any] = {}
    whole = _fits(stage, network)
    log.info("zero-shot tasks with %s", "the whole model in memory" if whole else "one block in memory at a time")
    with _model(network, tokenizer, stage.execution.stream_tokens, whole) as model:
        for each in found:
            scores += ask(model, each.tasks, each.entry.limit, run_code)
            described = about_tasks(each.tasks)
            about |= {"lm_eval": described["lm_eval"], "tasks": about.get("tasks", {}) | described["tasks"]}
    entries: list[dict[str, Any]] = [
        {
            "metric": score.metric, "dataset": score.task, "split": score.split, "length": None,
            "position": score.filter, "value": score.value, "stderr": score.stderr,
            "examples": score.examples, "shots": score.shots,
        }
        for score in scores
    ]  # fmt: skip
    mean = mean_accuracy(scores)
    if mean is not None:
        at = {"dataset": None, "split": None, "length": None}
        entries.append({"metric": "acc_mean"} | at | {"value": mean[0], "stderr": mean[1]})
    return entries, about | {"model": "whole" if whole else "streaming"}


@contextmanager
def _model(network: Network, tokenizer: Any, stream_tokens: int, whole: bool) -> Iterator[Any]:
    from freelunch.evaluate.streaming_lm import StreamingLM
    from freelunch.evaluate.whole_lm import WholeLM

    if not whole:
        yield StreamingLM(network, tokenizer, stream_tokens)
        return
    with network.whole() as model:
        yield WholeLM(model, tokenizer, stream_tokens)


def _fits(stage: Stage, network: Network) -> bool:
    """Whether the whole model is to be held: as the config says, or if it fits where blocks are run."""
    if stage.execution.zero_shot != "auto":
        return stage.execution.zero_shot == "whole"
    facts = Facts.model_validate(network.config.to_dict())
    needed = whole_bytes(facts, network.products.itemsize, stage.execution.stream_tokens)
    room = 0.9 * free_memory(network.device)
    return needed <= (room if network.device.type == "cuda" else min(room, LARGEST))
