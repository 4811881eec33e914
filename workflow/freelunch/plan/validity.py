"""What the models, data and methods of a config make impossible, refused before anything runs."""

from __future__ import annotations

from typing import Any

from freelunch.errors import FreelunchError, naming, suggest
from freelunch.inputs.questions import QUESTION_SETS
from freelunch.plan.config import LOSSES, Axes, Config, EvaluationTask, Split, SuiteConfig, ZeroShotTask
from freelunch.plan.facts import Facts, facts_of
from freelunch.pruning.method import Method, parse_method
from freelunch.pruning.patterns import Structured
from freelunch.recover.parametrizations import parse_parametrization
from freelunch.recover.windows import MATRICES, check_window

FEWEST_TOKENS = 257
"""Of a byte-level tokenizer: one for every byte, and one that ends a text."""


def check_model(config: Config, name: str) -> None:
    """Refuse a model that cannot be trained on the data of the config."""
    train, path = config.models[name].train, f"models.{name}.train"
    if train is None:
        return
    check_name(f"{path}.data", train.data, config.data)
    for split in ("calibration", "validation"):
        _split(config, train.data, split, f"{path}.data")
    facts = facts_of(config, name)
    _context(facts, train.length, f"{path}.length", name)
    if facts.vocab_size < FEWEST_TOKENS:
        raise FreelunchError(f"{path}.config.vocab_size: must be {FEWEST_TOKENS} or more, since the tokenizer has a "
                             f"token for every byte and one that ends a text (found {facts.vocab_size})")  # fmt: skip


def check_run(config: Config, path: str, axes: Axes) -> None:
    """Refuse what the models and data of the config make impossible."""
    check_name(f"{path}.model", axes.model, config.models)
    check_name(f"{path}.calibration", axes.calibration, config.data)
    for split in ("calibration", "validation"):
        _split(config, axes.calibration, split, f"{path}.calibration")
    facts = facts_of(config, axes.model)
    _context(facts, axes.length, f"{path}.length", axes.model)
    method = parse_method(axes.criterion, axes.pattern, axes.allocation, axes.refinement)
    try:
        method.check(facts.num_hidden_layers)
    except FreelunchError as error:
        raise FreelunchError(f"{path}: {error} ({axes.model})") from None
    with naming(f"{path}.pattern"):
        _fits(method, facts, axes.model)
    _recovery(path, axes, facts)


def _recovery(path: str, axes: Axes, facts: Facts) -> None:
    """Refuse a recovery whose parts do not go together."""
    if axes.prune_inputs == "recovered" and axes.recovery != "reconstruct":
        raise FreelunchError(
            f"{path}.prune_inputs: recovered needs recovery reconstruct, and recovery is {axes.recovery}; use sparse"
        )
    if axes.recovery in LOSSES and axes.loss not in (None, *LOSSES[axes.recovery]):
        raise FreelunchError(f"{path}.loss: {axes.loss} is no loss to {axes.recovery} with; "
                             f"allowed: {', '.join(LOSSES[axes.recovery])}")  # fmt: skip
    trains = axes.recovery == "retrain" or (axes.recovery == "reconstruct" and axes.window != "matrix_exact")
    if trains and axes.accumulation > axes.batch_size:
        raise FreelunchError(f"{path}.accumulation: {axes.batch_size} sequences cannot be run in {axes.accumulation} "
                             "parts; it is at most batch_size")  # fmt: skip
    if axes.recovery != "reconstruct":
        return
    try:
        check_window(axes.window, facts.num_hidden_layers)
    except FreelunchError as error:
        raise FreelunchError(f"{path}.window: {error} ({axes.model})") from None
    if axes.flow == "official_matrix" and (axes.window != "matrix" or axes.targets != "all"):
        raise FreelunchError(f"{path}.flow: official_matrix is a way to train window matrix with targets all")
    if axes.window == "matrix_exact":
        if axes.flow != "dense" or axes.loss not in (None, "mse"):
            raise FreelunchError(f"{path}.window: matrix_exact solves for flow dense and loss mse, and no other")
        if axes.prune_inputs == "recovered":
            raise FreelunchError(f"{path}.window: matrix_exact is solved on dense inputs; use prune_inputs dense")
    if axes.window == "matrix" and axes.targets != "all" and axes.prune_inputs == "recovered":
        raise FreelunchError(f"{path}.targets: with prune_inputs recovered windows are pruned as they are trained; "
                             "window matrix needs targets all")  # fmt: skip
    parts = parse_parametrization(axes.parametrization)
    if axes.window == "matrix_exact" and not any(part.whole for part in parts):
        raise FreelunchError(f"{path}.parametrization: matrix_exact solves for whole matrices; use full")
    if axes.window in MATRICES and not any(part.matrices or part.biases for part in parts):
        raise FreelunchError(f"{path}.parametrization: window {axes.window} holds no norms to train")


def _fits(method: Method, facts: Facts, model: str) -> None:
    """Refuse a pattern that does not fit the matrices, heads or channels of a model."""
    for role, (rows, columns) in facts.matrices.items():
        method.pattern.check(rows, columns, f"the {role} matrices of {model}")
    if isinstance(method.pattern, Structured):
        counts = {"heads": facts.num_attention_heads, "channels": facts.intermediate_size}
        for kind, count in counts.items() if method.pattern.group == "block" else ():
            dropped = method.pattern.pruned(count)
            if not 0 < dropped < count and method.pattern.sparsity:
                raise FreelunchError(
                    f"{method.pattern} prunes {dropped} of the {count} {kind} of a block of {model}; "
                    "at least one must go and one stay"
                )


def check_task(config: Config, task: EvaluationTask, path: str, model: str) -> bool:
    """Whether a task is for this model; refuse one that the data or the model's context make impossible."""
    if isinstance(task, ZeroShotTask):
        _questions(config, task, path)
        return True
    check_name(f"{path}.data", task.data, config.data)
    for split in task.splits:
        _split(config, task.data, split, f"{path}.splits")
    facts = facts_of(config, model)
    if task.too_long == "skip" and task.length > facts.max_position_embeddings:
        return False
    _context(facts, task.length, f"{path}.length", model)
    return True


def _questions(config: Config, task: ZeroShotTask, path: str) -> None:
    """Refuse questions about a data set that cannot be made. What lm-eval has is known only when a job starts."""
    local = [name for name in task.tasks if name in QUESTION_SETS]
    if task.data is None:
        if local:
            raise FreelunchError(f"{path}.data: this key is missing; {local[0]} asks about a data set")
        return
    if not local:
        raise FreelunchError(f"{path}.data: none of {', '.join(task.tasks)} asks about a data set; "
                             f"{', '.join(QUESTION_SETS)} do")  # fmt: skip
    check_name(f"{path}.data", task.data, config.data)
    _split(config, task.data, "test", f"{path}.data")
    fields = config.data[task.data].questions
    if fields is None:
        raise FreelunchError(f"data.{task.data}.questions: this key is missing; {local[0]} asks about its articles")
    for name in local:
        for field in QUESTION_SETS[name].fields:
            if getattr(fields, field) is None:
                raise FreelunchError(f"data.{task.data}.questions.{field}: this key is missing; {name} needs it")


def _context(facts: Facts, length: int, path: str, model: str) -> None:
    if length > facts.max_position_embeddings:
        raise FreelunchError(f"{path}: {length} tokens exceed the context of {model}, {facts.max_position_embeddings}")


def _split(config: Config, data: str, split: Split | str, path: str) -> None:
    if split not in config.data[data].splits:
        raise FreelunchError(f"{path}: data.{data} has no split {split!r}; {suggest(split, config.data[data].splits)}")


def check_distinct(name: str, suite: SuiteConfig) -> None:
    """Refuse tasks of a suite that measure the same."""
    seen: set[str] = set()
    for i, task in enumerate(suite.evaluate):
        path = f"suites.{name}.evaluate[{i}]"
        if isinstance(task, ZeroShotTask):
            path, measured = f"{path}.tasks", list(task.tasks)
        else:
            measured = [f"{task.metric} of {task.data} {split} at length {task.length}" for split in task.splits]
        for each in measured:
            if each in seen:
                raise FreelunchError(f"{path}: {each} is measured already")
            seen.add(each)


def check_name(path: str, name: str, known: Any) -> None:
    """Refuse a name that is not among those known."""
    if name not in known:
        raise FreelunchError(f"{path}: there is no {name!r}; {suggest(name, known)}")
