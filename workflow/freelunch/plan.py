"""From config to plan: every suite expanded into runs, every run into stage specs, shared wherever specs are equal.

Imports neither torch nor transformers; thousands of runs expand in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from .config import AXES, Axes, Config, EvaluationTask, Split, SuiteConfig, Wheel, validate
from .errors import FreelunchError, suggest
from .facts import Facts, facts_of
from .method import Method, parse_method
from .patterns import Structured
from .reporting.names import FIGURE_NAMES, TABLE_NAMES
from .specs import (
    STAGES,
    CalibrationSpec,
    DataSpec,
    DenseSpec,
    EvaluationSpec,
    ExportSpec,
    ModelSpec,
    PrunedSpec,
    ReconstructedSpec,
    Spec,
)
from .windows import tile

RULES = (
    "fetch", "model", "data", "calibrate", "dense", "grams", "prune", "recover", "evaluate", "export",
    "collect", "table", "figure",
)  # fmt: skip
RESERVED = frozenset({"all", *RULES, *STAGES, "wheels", "logs", "benchmarks"})
"""What a suite cannot be called: targets and folders of that name exist already."""


@dataclass(frozen=True)
class Run:
    """One row of a study: a network (dense, pruned or recovered) and its evaluation."""

    suite: str
    evaluation: EvaluationSpec
    axes: Axes | None
    """None for the dense model."""

    @property
    def name(self) -> str:
        return self.evaluation.name


@dataclass
class Plan:
    """All runs by suite, and all specs they need or can be exported by, by their manifest's path."""

    config: Config
    runs: dict[str, list[Run]] = field(default_factory=dict)
    specs: dict[str, Spec] = field(default_factory=dict)

    def stage(self, stage: str) -> dict[str, Spec]:
        """Specs of one stage by name."""
        return {spec.name: spec for spec in self.specs.values() if spec.stage == stage}

    def needed(self, suite: str) -> list[Spec]:
        """Specs a suite needs, upstream first."""
        found: dict[str, Spec] = {}
        for run in self.runs[suite]:
            for spec in walk(run.evaluation):
                found[spec.manifest] = spec
        return list(found.values())

    @property
    def wheels(self) -> list[Wheel]:
        """Wheels that models and data of the plan come from."""
        specs = (spec for spec in self.specs.values() if isinstance(spec, ModelSpec | DataSpec))
        found = [spec.source.wheel for spec in specs if spec.source.wheel is not None]
        return list(dict.fromkeys(found))


def walk(spec: Spec) -> Iterator[Spec]:
    """A spec and everything upstream of it, upstream first."""
    for above in spec.upstream():
        yield from walk(above)
    yield spec


def make_plan(config: Config) -> Plan:
    """Expand all suites.

    Raises:
        FreelunchError: a run that cannot be; names the key, the value and what is allowed.
    """
    _named("default_suite", config.default_suite, config.suites)
    plan = Plan(config)
    for name, suite in config.suites.items():
        if name in RESERVED:
            raise FreelunchError(f"suites.{name}: a suite cannot have the name of a rule or of a folder of results")
        _distinct_tasks(name, suite)
        for kind, known, wanted in (("tables", TABLE_NAMES, suite.tables), ("figures", FIGURE_NAMES, suite.figures)):
            for i, view in enumerate(wanted):
                _named(f"suites.{name}.{kind}[{i}]", view, known)
        plan.runs[name] = list(_runs(config, name, suite))
        for spec in [*plan.needed(name), *_exports(plan.runs[name])]:
            if plan.specs.setdefault(spec.manifest, spec) != spec:
                raise FreelunchError(f"suites.{name}: two different specs share the name {spec.name}")
    return plan


def _exports(runs: list[Run]) -> list[ExportSpec]:
    """Exports of all pruned and recovered networks: targets of their own, which no suite needs."""
    subjects = (run.evaluation.subject for run in runs)
    return [ExportSpec(subject=subject) for subject in subjects if not isinstance(subject, ModelSpec)]


def _runs(config: Config, name: str, suite: SuiteConfig) -> Iterator[Run]:
    """For every model its dense run, then those that the entries multiply out to, each once."""
    runs = list(_expand(config, name, suite))
    for where, axes in runs:
        _check(config, where, axes)
    models = [axes.model for _, axes in runs] or _models_of_defaults(config, name, suite)
    for model in dict.fromkeys(models):
        found = [_run(config, name, suite, None, model)]
        found += [_run(config, name, suite, axes, model) for _, axes in runs if axes.model == model]
        yield from {run.name: run for run in found}.values()


def _models_of_defaults(config: Config, name: str, suite: SuiteConfig) -> list[str]:
    """Models of a suite without runs, which measures them as they are."""
    found = (config.defaults | suite.defaults).get("model", [])
    models = found if isinstance(found, list) else [found]
    for model in models:
        _named(f"suites.{name}.defaults.model", model, config.models)
    return models


def _expand(config: Config, name: str, suite: SuiteConfig) -> Iterator[tuple[str, Axes]]:
    """Every combination of the axes of every entry of ``runs``; an axis is a value or a list of values."""
    shared = _axes(config.defaults, "defaults") | _axes(suite.defaults, f"suites.{name}.defaults")
    for i, entry in enumerate(suite.runs):
        where = f"suites.{name}.runs[{i}]"
        merged = shared | _axes(entry, where)
        lists = {axis: value if isinstance(value, list) else [value] for axis, value in merged.items()}
        for axis, values in lists.items():
            if not values:
                raise FreelunchError(f"{where}.{axis}: the list is empty")
        for combination in product(*lists.values()):
            yield where, validate(Axes, dict(zip(lists, combination, strict=True)), where)


def _axes(entry: dict[str, Any], where: str) -> dict[str, Any]:
    for key in entry:
        if key not in AXES:
            raise FreelunchError(f"{where}.{key}: unknown key; {suggest(str(key), AXES)}")
    return entry


def _run(config: Config, name: str, suite: SuiteConfig, axes: Axes | None, model_name: str) -> Run:
    model = ModelSpec(model=model_name, source=config.models[model_name])
    subject: ModelSpec | PrunedSpec | ReconstructedSpec = model
    if axes is not None:
        calibration = CalibrationSpec(
            model=model, data=_data(config, axes.calibration), sequences=axes.sequences,
            validation_sequences=axes.validation_sequences, length=axes.length, sampling=axes.sampling, seed=axes.seed,
        )  # fmt: skip
        subject = pruned = PrunedSpec(
            dense=DenseSpec(calibration=calibration), criterion=axes.criterion,
            pattern=axes.pattern, allocation=axes.allocation, refinement=axes.refinement,
            prune_inputs=axes.prune_inputs, seed=axes.seed,
        )  # fmt: skip
        if axes.recovery == "reconstruct":
            shared = {key: getattr(axes, key) for key in ReconstructedSpec.model_fields if key in AXES}
            subject = ReconstructedSpec(pruned=pruned, **shared)
    tasks = tuple(_in_context(config, task, f"suites.{name}.evaluate[{i}]", model_name)
                  for i, task in enumerate(suite.evaluate))  # fmt: skip
    data = tuple(_data(config, dataset) for dataset in dict.fromkeys(task.data for task in tasks))
    return Run(name, EvaluationSpec(subject=subject, data=data, tasks=tasks), axes)


def _data(config: Config, name: str) -> DataSpec:
    return DataSpec(data=name, source=config.data[name])


def _check(config: Config, where: str, axes: Axes) -> None:
    """Refuse what the models and data of the config make impossible."""
    _named(f"{where}.model", axes.model, config.models)
    _named(f"{where}.calibration", axes.calibration, config.data)
    for split in ("calibration", "validation"):
        _split(config, axes.calibration, split, f"{where}.calibration")
    facts = facts_of(config, axes.model)
    _length(facts, axes.length, f"{where}.length", axes.model)
    method = parse_method(axes.criterion, axes.pattern, axes.allocation, axes.refinement)
    try:
        method.check(facts.num_hidden_layers)
    except FreelunchError as error:
        raise FreelunchError(f"{where}: {error} ({axes.model})") from None
    try:
        _fits(method, facts, axes.model)
    except FreelunchError as error:
        raise FreelunchError(f"{where}.pattern: {error}") from None
    if axes.prune_inputs == "recovered" and axes.recovery == "none":
        raise FreelunchError(f"{where}.prune_inputs: recovered needs a recovery, and recovery is none; use sparse")
    try:
        tile(axes.window, facts.num_hidden_layers)
    except FreelunchError as error:
        raise FreelunchError(f"{where}.window: {error} ({axes.model})") from None


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


def _in_context(config: Config, task: EvaluationTask, where: str, model: str) -> EvaluationTask:
    _named(f"{where}.data", task.data, config.data)
    for split in task.splits:
        _split(config, task.data, split, f"{where}.splits")
    _length(facts_of(config, model), task.length, f"{where}.length", model)
    return task


def _length(facts: Facts, length: int, where: str, model: str) -> None:
    if length > facts.max_position_embeddings:
        raise FreelunchError(f"{where}: {length} tokens exceed the context of {model}, {facts.max_position_embeddings}")


def _split(config: Config, data: str, split: Split | str, where: str) -> None:
    if split not in config.data[data].splits:
        raise FreelunchError(f"{where}: data.{data} has no split {split!r}; {suggest(split, config.data[data].splits)}")


def _distinct_tasks(name: str, suite: SuiteConfig) -> None:
    seen: set[tuple[str, str, int]] = set()
    for i, task in enumerate(suite.evaluate):
        for split in task.splits:
            if (task.data, split, task.length) in seen:
                raise FreelunchError(
                    f"suites.{name}.evaluate[{i}]: {task.data} {split} at length {task.length} is measured already"
                )
            seen.add((task.data, split, task.length))


def _named(where: str, name: str, known: Any) -> None:
    if name not in known:
        raise FreelunchError(f"{where}: there is no {name!r}; {suggest(name, known)}")
