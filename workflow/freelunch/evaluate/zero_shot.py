"""Zero-shot tasks through lm-eval: which are asked, of what kind of model, and the entries that they give.

Whatever can be wrong with a task (its name, its data, a package that it needs) is found when it is loaded, before any
forward pass, and said in one line.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from freelunch.engine.device import free_memory
from freelunch.engine.streaming import Network
from freelunch.errors import FreelunchError
from freelunch.evaluate.lm import StreamingLM, WholeLM
from freelunch.evaluate.sizes import LARGEST, whole_bytes
from freelunch.inputs.questions import FOLDER, QUESTION_SETS
from freelunch.inputs.sources import repository_error
from freelunch.plan.config import ZeroShotTask
from freelunch.plan.facts import Facts
from freelunch.plan.specs import EvaluationSpec
from freelunch.results.stage import Stage

SEED = 1234
"""Of lm-eval's draws: solved examples, bootstraps. Its own default."""
BOOTSTRAP = 1000
Asked = list[tuple[ZeroShotTask, dict[str, Any]]]
"""Entries of the config, each with its tasks of lm-eval, loaded."""
log = logging.getLogger(__name__)


@contextmanager
def asked(stage: Stage, spec: EvaluationSpec) -> Iterator[Asked]:
    """The zero-shot tasks of an evaluation, loaded; usable while the context is open.

    Raises:
        FreelunchError: a task cannot be loaded; says what would help.
    """
    with tempfile.TemporaryDirectory(dir=stage.folder, prefix="scratch-") as folder:
        loaded = []
        for entry in (entry for entry in spec.tasks if isinstance(entry, ZeroShotTask)):
            questions = {}
            if entry.data is not None:
                artifact = stage.open(spec.questions[entry.data])
                local = [name for name in entry.tasks if name in QUESTION_SETS]
                questions = {name: artifact.file(f"{name}.jsonl").absolute() for name in local}
            run_code = stage.execution.run_model_code
            loaded.append((entry, load_tasks(entry.tasks, questions, Path(folder), entry.shots, run_code)))
        yield loaded


def answers(
    stage: Stage, network: Network, tokenizer: Any, loaded: Asked
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Run all tasks: their entries in ``metrics.json``, and what the manifest says of them."""
    tokens, whole = stage.execution.stream_tokens, _holds_whole(stage, network)
    log.info("zero-shot tasks with %s", "the whole model in memory" if whole else "one block in memory at a time")
    entries: list[dict[str, Any]] = []
    tasks: dict[str, Any] = {}
    with network.whole() if whole else nullcontext() as model:
        lm = StreamingLM(network, tokenizer, tokens) if model is None else WholeLM(model, tokenizer, tokens)
        for entry, group in loaded:
            entries += ask(lm, group, entry.limit, stage.execution.run_model_code)
            tasks |= group
    mean = mean_accuracy(entries)
    if mean is not None:
        about = {"metric": "acc_mean", "dataset": None, "split": None, "length": None}
        entries.append(about | {"value": mean[0], "stderr": mean[1]})
    return entries, about_tasks(tasks) | {"model": "whole" if whole else "streaming"}


def _holds_whole(stage: Stage, network: Network) -> bool:
    """Whether the whole model is held: as the config says, or if it fits where blocks are run."""
    if stage.execution.zero_shot != "auto":
        return stage.execution.zero_shot == "whole"
    facts = Facts.model_validate(network.config.to_dict())
    needed = whole_bytes(facts, network.products.itemsize, stage.execution.stream_tokens)
    room = 0.9 * free_memory(network.device)
    return needed <= (room if network.device.type == "cuda" else min(room, LARGEST))


# --- tasks -----------------------------------------------------------------------------------------------------------


def load_tasks(
    names: Sequence[str], questions: Mapping[str, Path], cache: Path, shots: int | None = None, run_code: bool = False
) -> dict[str, Any]:
    """Tasks with their data, by names that lm-eval knows or that are files in ``workflow/tasks``.

    Args:
        questions: JSON lines of the local tasks.
        cache: folder for what is made of these; it must stay as long as the tasks.
        shots: solved examples before each question; None: as the task says.
        run_code: whether tasks may run code that the model wrote.

    Raises:
        FreelunchError: names the task, why it cannot be loaded, and what would help.
    """
    manager = TaskManager(include_path=FOLDER, include_defaults=not set(names) <= questions.keys())
    return {name: _task(manager, name, questions.get(name), cache, shots, run_code) for name in names}


def _task(
    manager: TaskManager, name: str, questions: Path | None, cache: Path, shots: int | None, run_code: bool
) -> Any:
    where, entry = f"zero-shot task {name}", manager.task_index.get(name)
    if entry is None:
        near = difflib.get_close_matches(name, manager.all_subtasks, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise FreelunchError(f"{where}: lm-eval has no such task; {hint}`lm-eval ls subtasks` lists them")
    if name not in manager.all_subtasks:
        members = sorted(entry.tags) or [str(each) for each in (entry.cfg or {}).get("task", [])]
        raise FreelunchError(f"{where}: stands for several; name them one by one: {', '.join(members[:20])}")
    config = entry.cfg or {}
    if config.get("unsafe_code"):
        if not run_code:
            raise FreelunchError(f"{where}: runs code that the model wrote; set execution.run_model_code: true if this "
                                 "machine may")  # fmt: skip
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    local = {"dataset_kwargs": {"data_files": {"test": str(questions)}, "cache_dir": str(cache)}}
    try:
        task = manager.load([name if questions is None else {**config, **local}])["tasks"][name]
    except ImportError as error:
        raise FreelunchError(f"{where}: a package is missing: {error}") from None
    except Exception as error:  # what fails in reading a data set has no class of its own
        data = "/".join(str(config[key]) for key in ("dataset_path", "dataset_name") if config.get(key))
        if isinstance(error, KeyError):
            raise FreelunchError(f"{where}: data set {data} lacks {error}") from None
        raise FreelunchError(f"{where}: {repository_error(error, f'data set {data}')}") from None
    if getattr(task, "MULTIMODAL", False):
        raise FreelunchError(f"{where}: shows images or sounds, and the models here read text")
    own_shots = task.get_config("num_fewshot")
    if shots and own_shots == 0:
        raise FreelunchError(f"{where}: is made for no solved examples, and shots is {shots}")
    task.set_config(key="num_fewshot", value=(own_shots or 0) if shots is None else shots)
    task.set_fewshot_seed(seed=SEED)
    return task


def about_tasks(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of tasks that were run: versions, data, and a hash of all that was asked."""
    return {
        "lm_eval": importlib.metadata.version("lm_eval"),
        "tasks": {
            name: {
                "version": task.VERSION,
                "data": [part for part in (task.DATASET_PATH, task.DATASET_NAME) if part],
                "requests": hashlib.sha256(
                    json.dumps([each.args for each in task.instances], default=str).encode()
                ).hexdigest(),
            }
            for name, task in tasks.items()
        },
    }


# --- scores ----------------------------------------------------------------------------------------------------------


def ask(model: LM, tasks: Mapping[str, Any], limit: int | None, run_code: bool = False) -> list[dict[str, Any]]:
    """Run tasks on a model, of each its first ``limit`` examples: entries of ``metrics.json``.

    They are lm-eval's scores (``position`` is how an answer was read from what the model wrote, where a task does so in
    several ways; ``stderr`` is over examples, None where lm-eval has none), and for each task where it is known, as
    ``chance``, what guessing would give.
    """
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 (the generator that lm-eval draws from)
    torch.manual_seed(SEED)
    try:
        results: Any = evaluate(
            lm=model, task_dict={"tasks": dict(tasks)}, limit=limit, bootstrap_iters=BOOTSTRAP, log_samples=False,
            confirm_run_unsafe_code=run_code,
        )  # fmt: skip
    except ImportError as error:
        raise FreelunchError(f"zero-shot tasks {', '.join(tasks)}: a package is missing: {error}") from None
    return [entry for name, task in tasks.items() for entry in _entries(name, task, results)]


def _entries(name: str, task: Any, results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    examples, scores = results["n-samples"][name]["effective"], results["results"][name]
    about = {"dataset": name, "split": "test" if task.has_test_docs() else "validation", "length": None}
    counts = {"examples": examples, "shots": results["n-shot"][name]}
    keys = [key.rsplit(",", 1) for key in scores if "," in key and "_stderr," not in key and _is_real(scores[key])]
    for metric, way in keys:
        stderr = scores.get(f"{metric}_stderr,{way}")
        several = sum(other == metric for other, _ in keys) > 1
        value = {
            "position": way if several else None, "value": float(scores[f"{metric},{way}"]),
            "stderr": float(stderr) if _is_real(stderr) else None,
        }  # fmt: skip
        yield {"metric": metric} | about | value | counts
    guessed = chance(task, examples)
    if guessed is not None:
        yield {"metric": "chance"} | about | {"position": None, "value": guessed, "stderr": None} | counts


def chance(task: Any, examples: int) -> float | None:
    """Accuracy of guessing: what the task's file says, or else the mean of one over the number of choices."""
    stated = (task.get_config("metadata") or {}).get("chance")
    if stated is not None:
        return float(stated)
    if task.OUTPUT_TYPE != "multiple_choice" or not hasattr(task, "doc_to_choice"):
        return None
    shares = [1 / len(task.doc_to_choice(document)) for _, document in task.doc_iterator(limit=examples)]
    return sum(shares) / len(shares)


def mean_accuracy(entries: Sequence[Mapping[str, Any]]) -> tuple[float, float | None] | None:
    """Mean over tasks of ``acc``, and its standard error, since tasks are independent; None if no task has it."""
    accuracies = [entry for entry in entries if entry["metric"] == "acc"]
    if not accuracies:
        return None
    errors = [entry["stderr"] for entry in accuracies]
    spread = None if None in errors else math.sqrt(sum(error**2 for error in errors)) / len(errors)
    return sum(entry["value"] for entry in accuracies) / len(accuracies), spread


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
