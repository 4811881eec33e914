"""From config to plan: every suite expanded into runs, every run into stage specs, shared wherever specs are equal.

Imports neither torch nor transformers; thousands of runs expand in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, product
from math import prod
from typing import Any

from freelunch.vision.config import CLASSIFIER_AXES, ClassifierAxes
from freelunch.vision.runs import check_classifier_run, classifier_runs

from .config import AXES, LOSSES, Axes, Config, EvaluationTask, SuiteConfig, TextTask, ZeroShotTask, validate
from .errors import FreelunchError, suggest
from .report.views import FIGURES, TABLES
from .section import Wheel
from .specs import (
    STAGES,
    CalibrationSpec,
    ClassifierSpec,
    DataSpec,
    DenseSpec,
    EvaluationSpec,
    ExportSpec,
    ImagesSpec,
    ModelSpec,
    OverlaySpec,
    PrunedSpec,
    QuestionsSpec,
    ReconstructedSpec,
    RepairedSpec,
    RetrainedSpec,
    SparseClassifierSpec,
    Spec,
    Training,
)
from .validity import check_distinct, check_model, check_name, check_run, check_task

RULES = (
    "fetch", "model", "data", "questions", "calibrate", "dense", "grams", "prune", "shard", "reconstruct", "retrain",
    "repair", "evaluate", "export_model", "images", "classifier", "sparse_classifier", "collect", "table", "figure",
    "report",
)  # fmt: skip
RESERVED = frozenset({"all", *RULES, *STAGES, "wheels", "logs", "benchmarks"})
"""What a suite cannot be called: targets and folders of that name exist already."""


LARGEST = 100_000
"""Runs of a suite; every axis that is a list multiplies them."""


@dataclass(frozen=True)
class Run:
    """One row of a study: a network (dense, pruned or recovered) and its evaluation.

    Classifiers are measured by the stages that make them.
    """

    suite: str
    evaluation: EvaluationSpec | ClassifierSpec | SparseClassifierSpec
    axes: Axes | ClassifierAxes | None
    """None for the dense model."""

    @property
    def name(self) -> str:
        return self.evaluation.name

    @property
    def model(self) -> str:
        """Name of the dense model or classifier underneath."""
        found = self.evaluation
        if isinstance(found, EvaluationSpec):
            return found.base.model
        return found.model if isinstance(found, ClassifierSpec) else found.dense.model

    @property
    def read(self) -> list[Spec]:
        """Everything whose numbers stand in its rows."""
        found = self.evaluation
        if isinstance(found, EvaluationSpec):
            return [found, found.base, *found.overlays]
        return [found] if isinstance(found, ClassifierSpec) else [found, found.dense]

    @property
    def subject(self) -> ModelSpec | OverlaySpec | None:
        """The language model that is measured."""
        return self.evaluation.subject if isinstance(self.evaluation, EvaluationSpec) else None

    @property
    def overlays(self) -> list[OverlaySpec]:
        """What lies over a dense language model."""
        return self.evaluation.overlays if isinstance(self.evaluation, EvaluationSpec) else []


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
            found.update(self.needed_by(run))
        return list(found.values())

    def needed_by(self, run: Run) -> dict[str, Spec]:
        """Specs a run needs, by manifest, upstream first."""
        found: dict[str, Spec] = {}
        for spec in walk(run.evaluation):
            if isinstance(spec, ReconstructedSpec):
                found.update({shard.manifest: shard for shard in spec.split(self.config.execution.shards)})
            found[spec.manifest] = spec
        return found

    def exports(self, suite: str) -> list[ExportSpec]:
        """The pruned and recovered networks of a suite as models of their own."""
        return _exports(self.runs[suite])

    @property
    def wheels(self) -> list[Wheel]:
        """Wheels that models and data of the plan come from."""
        specs = (spec for spec in self.specs.values() if isinstance(spec, ModelSpec | DataSpec | ImagesSpec))
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
    check_name("default_suite", config.default_suite, config.suites)
    for model in config.models:
        check_model(config, model)
    plan = Plan(config)
    for name, suite in config.suites.items():
        if name in RESERVED:
            raise FreelunchError(f"suites.{name}: a suite cannot have the name of a rule or of a folder of results")
        check_distinct(name, suite)
        for kind, known, wanted in (("tables", TABLES, suite.tables), ("figures", FIGURES, suite.figures)):
            for i, view in enumerate(wanted):
                check_name(f"suites.{name}.{kind}[{i}]", view, known)
        plan.runs[name] = list(_runs(config, name, suite))
        for spec in [*plan.needed(name), *_exports(plan.runs[name])]:
            if plan.specs.setdefault(spec.manifest, spec) != spec:
                raise FreelunchError(f"suites.{name}: two different specs share the name {spec.name}")
    return plan


def _exports(runs: list[Run]) -> list[ExportSpec]:
    """Exports of all pruned and recovered networks: targets of their own, which no suite needs."""
    return [
        ExportSpec(subject=run.subject)
        for run in runs
        if run.subject is not None and not isinstance(run.subject, ModelSpec)
    ]


def _runs(config: Config, name: str, suite: SuiteConfig) -> Iterator[Run]:
    """For every model its dense run, then those that the entries multiply out to, each once; then classifiers."""
    found = list(islice(_expand(config, name), LARGEST + 1))
    if len(found) > LARGEST:
        raise FreelunchError(f"suites.{name}.runs: are more than {LARGEST:,}; split the suite")
    runs = [(where, axes) for where, axes in found if isinstance(axes, Axes)]
    for where, axes in runs:
        check_run(config, where, axes)
    if runs and not suite.evaluate:
        raise FreelunchError(f"suites.{name}.evaluate: this key is missing; runs of language models need a task")
    for i, task in enumerate(suite.evaluate):
        if runs and not any(_measures(task, axes) for _, axes in runs):
            raise FreelunchError(f"suites.{name}.evaluate[{i}].only: no run of the suite is so")
    models = [axes.model for _, axes in runs] or ([] if found else _models_of_defaults(config, name, suite))
    for model in dict.fromkeys(models):
        dense = _model(config, model)
        yield _run(config, name, suite, dense, [], model)
        # runs that differ in what their recovery does not look at are one
        subjects: dict[str, tuple[OverlaySpec, list[Axes]]] = {}
        for _, axes in runs:
            if axes.model == model:
                subject = _subject(config, dense, axes)
                subjects.setdefault(subject.manifest, (subject, []))[1].append(axes)
        for subject, same in subjects.values():
            yield _run(config, name, suite, subject, same, model)
    classified = [(where, axes) for where, axes in found if isinstance(axes, ClassifierAxes)]
    for where, classifier in classified:
        check_classifier_run(config, where, classifier)
    for spec, its in classifier_runs(config, [axes for _, axes in classified]):
        yield Run(name, spec, its)


def _measures(task: EvaluationTask, axes: Axes) -> bool:
    """Whether a task is for a run."""
    return all(getattr(axes, axis) in values for axis, values in task.only.items())


def _models_of_defaults(config: Config, name: str, suite: SuiteConfig) -> list[str]:
    """Models of a suite without runs, which measures them as they are."""
    found = (config.defaults | suite.defaults).get("model", [])
    models = found if isinstance(found, list) else [found]
    for model in models:
        check_name(f"suites.{name}.defaults.model", model, config.models)
    return models


def _expand(config: Config, name: str, within: tuple[str, ...] = ()) -> Iterator[tuple[str, Axes | ClassifierAxes]]:
    """Every combination of the axes of every entry of ``runs``, those of included suites first; an axis is a value or
    a list of values."""
    suite = config.suites[name]
    for i, other in enumerate(suite.include):
        check_name(f"suites.{name}.include[{i}]", other, config.suites)
        if other in (*within, name):
            raise FreelunchError(f"suites.{name}.include[{i}]: {other} includes {name}")
        yield from _expand(config, other, (*within, name))
    for i, entry in enumerate(suite.runs):
        where = f"suites.{name}.runs[{i}]"
        own = suite.defaults | entry
        if "classifier" in own:
            kind: type[Axes | ClassifierAxes] = ClassifierAxes
            merged = _axes(suite.defaults, f"suites.{name}.defaults", CLASSIFIER_AXES)
        else:
            kind = Axes
            merged = _axes(config.defaults, "defaults", AXES) | _axes(suite.defaults, f"suites.{name}.defaults", AXES)
        merged = merged | _axes(entry, where, tuple(kind.model_fields))
        lists = {axis: _listed(axis, value) for axis, value in merged.items()}
        for axis, values in lists.items():
            if not values:
                raise FreelunchError(f"{where}.{axis}: the list is empty")
        if prod(map(len, lists.values())) > LARGEST:
            raise FreelunchError(f"{where}: its lists multiply to more than {LARGEST:,} runs; shorten them")
        for combination in product(*lists.values()):
            yield where, validate(kind, dict(zip(lists, combination, strict=True)), where)


def _listed(axis: str, value: Any) -> list[Any]:
    """Values to multiply out; ``backends`` of classifiers are one value."""
    return value if isinstance(value, list) and axis != "backends" else [value]


def _axes(entry: dict[str, Any], where: str, known: tuple[str, ...]) -> dict[str, Any]:
    for key in entry:
        if key not in known:
            raise FreelunchError(f"{where}.{key}: unknown key; {suggest(str(key), known)}")
    return entry


def _run(
    config: Config, name: str, suite: SuiteConfig, subject: ModelSpec | OverlaySpec, same: list[Axes], model: str
) -> Run:
    """A run that all of ``same`` are; none of the dense model."""
    where = f"suites.{name}.evaluate"
    tasks = [task for i, task in enumerate(suite.evaluate) if check_task(config, task, f"{where}[{i}]", model)]
    if not tasks:
        raise FreelunchError(f"{where}: every task is too long for {model}; add one that it can be measured with")
    if same:
        tasks = [task for task in tasks if any(_measures(task, axes) for axes in same)]
    else:
        tasks = [task for task in tasks if model in task.only.get("model", [model])]
    if not tasks:
        raise FreelunchError(f"{where}: no task measures {subject.label}; add one that is for all runs")
    tasks = [task.model_copy(update={"only": {}}) for task in tasks]
    read = dict.fromkeys(task.data for task in tasks if isinstance(task, TextTask))
    asked = dict.fromkeys(task.data for task in tasks if isinstance(task, ZeroShotTask) and task.data is not None)
    texts, questions = [_data(config, dataset) for dataset in read], [_questions(config, dataset) for dataset in asked]
    evaluation = EvaluationSpec(subject=subject, data=(*texts, *questions), tasks=tuple(tasks))
    return Run(name, evaluation, same[-1] if same else None)


def _subject(config: Config, model: ModelSpec, axes: Axes) -> OverlaySpec:
    """The network that a run measures."""
    calibration = CalibrationSpec(
        model=model, data=_data(config, axes.calibration), sequences=axes.sequences,
        validation_sequences=axes.validation_sequences, length=axes.length, sampling=axes.sampling, seed=axes.seed,
    )  # fmt: skip
    pruned = PrunedSpec(
        dense=DenseSpec(calibration=calibration), criterion=axes.criterion,
        pattern=axes.pattern, allocation=axes.allocation, refinement=axes.refinement,
        prune_inputs=axes.prune_inputs, seed=axes.seed,
    )  # fmt: skip
    return _recovered(pruned, axes)


def _recovered(pruned: PrunedSpec, axes: Axes) -> OverlaySpec:
    """What becomes of the pruned model."""
    if axes.recovery == "none":
        return pruned
    if axes.recovery == "repair":
        return RepairedSpec(pruned=pruned, repair=axes.repair)
    calibration = pruned.dense.calibration
    if axes.training_sequences is not None:
        calibration = calibration.changed(sequences=axes.training_sequences)
    closed_form = axes.recovery == "reconstruct" and axes.window == "matrix_exact"
    counted = ("parametrization", "targets") if closed_form else Training.model_fields
    training = Training(
        **{key: getattr(axes, key) for key in counted} | {"loss": axes.loss or LOSSES[axes.recovery][0]}
    )
    if axes.recovery == "retrain":
        return RetrainedSpec(pruned=pruned, calibration=calibration, training=training)
    dense = DenseSpec(calibration=calibration)
    return ReconstructedSpec(pruned=pruned, dense=dense, window=axes.window, flow=axes.flow, training=training)


def _model(config: Config, name: str) -> ModelSpec:
    source = config.models[name]
    data = None if source.train is None else _data(config, source.train.data)
    return ModelSpec(model=name, source=source, data=data)


def _data(config: Config, name: str) -> DataSpec:
    return DataSpec(data=name, source=config.data[name])


def _questions(config: Config, name: str) -> QuestionsSpec:
    fields = config.data[name].questions
    assert fields is not None
    return QuestionsSpec(data=_data(config, name), fields=fields)
