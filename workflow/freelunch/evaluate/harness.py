"""Zero-shot tasks through lm-eval: what is asked, and what came out.

Whatever can be wrong with a task (its name, its data, a package that it needs) is found when it is loaded, before any
forward pass, and said in one line.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import json
import math
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from freelunch.errors import FreelunchError
from freelunch.inputs.questions import FOLDER
from freelunch.inputs.sources import repository_error

SEED = 1234
"""Of lm-eval's draws: solved examples, bootstraps. Its own default."""
BOOTSTRAP = 1000


@dataclass(frozen=True)
class Score:
    """One metric of one task, with its standard error over examples (None where lm-eval has none).

    ``filter`` is how the answer was read from what the model wrote, where a task does so in several ways.
    """

    metric: str
    task: str
    split: str
    filter: str | None
    value: float
    stderr: float | None
    examples: int
    shots: int


def load_tasks(
    names: Sequence[str], questions: Mapping[str, Path], cache: Path, shots: int | None = None, run_code: bool = False
) -> dict[str, Any]:
    """Tasks of lm-eval by name, with their data.

    Args:
        names: that lm-eval knows, or that are files in ``workflow/tasks``.
        questions: JSON lines of the local ones among them.
        cache: folder for what is made of these; it must stay as long as the tasks.
        shots: solved examples before each question; None: as the task says.
        run_code: whether tasks may run code that the model wrote.

    Raises:
        FreelunchError: names the task, why it cannot be loaded, and what would help.
    """
    manager = TaskManager(include_path=FOLDER, include_defaults=not set(names) <= questions.keys())
    return {name: _task(manager, name, questions.get(name), cache, shots, run_code) for name in names}


def ask(model: LM, tasks: Mapping[str, Any], limit: int | None, run_code: bool = False) -> list[Score]:
    """Run tasks on a model; ``limit`` is that of examples per task, from the first.

    Scores are those of lm-eval, and for each task where it is known, as ``chance``, what guessing would give.
    """
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 (the generator that lm-eval draws from)
    torch.manual_seed(SEED)
    try:
        found: Any = evaluate(
            lm=model, task_dict={"tasks": dict(tasks)}, limit=limit, bootstrap_iters=BOOTSTRAP, log_samples=False,
            confirm_run_unsafe_code=run_code,
        )  # fmt: skip
    except ImportError as error:
        raise FreelunchError(f"zero-shot tasks {', '.join(tasks)}: a package is missing: {error}") from None
    scores = []
    for name, task in tasks.items():
        at: dict[str, Any] = {
            "task": name,
            "split": "test" if task.has_test_docs() else "validation",
            "examples": found["n-samples"][name]["effective"],
            "shots": found["n-shot"][name],
        }
        results = found["results"][name]
        keys = [key for key in results if "," in key and "_stderr," not in key and _real(results[key])]
        for key in keys:
            metric, way = key.rsplit(",", 1)
            stderr = results.get(f"{metric}_stderr,{way}")
            several = sum(other.rsplit(",", 1)[0] == metric for other in keys) > 1
            scores.append(
                Score(metric=metric, filter=way if several else None, value=float(results[key]),
                      stderr=float(stderr) if _real(stderr) else None, **at)
            )  # fmt: skip
        guessed = chance(task, at["examples"])
        if guessed is not None:
            scores.append(Score(metric="chance", filter=None, value=guessed, stderr=None, **at))
    return scores


def mean_accuracy(scores: Sequence[Score]) -> tuple[float, float | None] | None:
    """Mean over tasks of ``acc``, and its standard error, since tasks are independent; None if no task has it."""
    found = [score for score in scores if score.metric == "acc"]
    if not found:
        return None
    errors = [score.stderr for score in found if score.stderr is not None]
    spread = math.sqrt(sum(error**2 for error in errors)) / len(found) if len(errors) == len(found) else None
    return sum(score.value for score in found) / len(found), spread


def chance(task: Any, examples: int) -> float | None:
    """Accuracy of guessing: what the task's file says, or else the mean of one over the number of choices."""
    stated = (task.get_config("metadata") or {}).get("chance")
    if stated is not None:
        return float(stated)
    if task.OUTPUT_TYPE != "multiple_choice" or not hasattr(task, "doc_to_choice"):
        return None
    shares = [1 / len(task.doc_to_choice(document)) for _, document in task.doc_iterator(limit=examples)]
    return sum(shares) / len(shares)


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


def _task(
    manager: TaskManager, name: str, questions: Path | None, cache: Path, shots: int | None, run_code: bool
) -> Any:
    where = f"zero-shot task {name}"
    entry = manager.task_index.get(name)
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
    wanted: Any = name
    if questions is not None:
        files = {"data_files": {"test": str(questions)}, "cache_dir": str(cache)}
        wanted = {**config, "dataset_kwargs": files}
    try:
        task = manager.load([wanted])["tasks"][name]
    except ImportError as error:
        raise FreelunchError(f"{where}: a package is missing: {error}") from None
    except Exception as error:  # what fails in reading a data set has no class of its own
        data = "/".join(str(config[key]) for key in ("dataset_path", "dataset_name") if config.get(key))
        if isinstance(error, KeyError):
            raise FreelunchError(f"{where}: data set {data} lacks {error}") from None
        raise FreelunchError(f"{where}: {repository_error(error, f'data set {data}')}") from None
    if getattr(task, "MULTIMODAL", False):
        raise FreelunchError(f"{where}: shows images or sounds, and the models here read text")
    given = task.get_config("num_fewshot")
    if shots is not None and given == 0 and shots:
        raise FreelunchError(f"{where}: is made for no solved examples, and shots is {shots}")
    task.set_config(key="num_fewshot", value=(given or 0) if shots is None else shots)
    task.set_fewshot_seed(seed=SEED)
    return task


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
