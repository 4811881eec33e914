"""From config to plan: every suite expanded into runs, every run into stage specs, shared wherever specs are equal.

Imports neither torch nor transformers; thousands of runs expand in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice, product
from math import prod
from typing import Any, get_origin

import yaml

from freelunch.errors import FreelunchError, suggest
from freelunch.plan.config import LOSSES, Axes, Config, EvaluationTask, SuiteConfig, TextTask, Wheel, ZeroShotTask
from freelunch.plan.section import Section, validate
from freelunch.plan.spec import STAGES, MeasuredSpec, Spec
from freelunch.plan.specs import (
    CalibrationSpec,
    DataSpec,
    DenseSpec,
    EvaluationSpec,
    ExportSpec,
    ModelSpec,
    OverlaySpec,
    PrunedSpec,
    QuestionsSpec,
    ReconstructedSpec,
    RepairedSpec,
    RetrainedSpec,
    Training,
)
from freelunch.plan.validity import check_distinct, check_model, check_name, check_run, check_task

LARGEST = 100_000
"""Runs of a suite; every axis that is a list multiplies them."""
VIEWS: dict[str, Mapping[str, Any]] = {"tables": {}, "figures": {}}
"""Tables and figures that a suite may name, by the key that lists them; ``report.views`` puts its own here."""


@dataclass(frozen=True)
class RunKind:
    """A kind of run besides those of language models: suites have it where they set an axis that it alone has.

    Attributes:
        axes: what defines a run. An axis that is a tuple is one value, others are multiplied out where they are lists.
        runs: the specs to measure and the axes of each (None: a dense network), from axes with their paths in the
            config; refuses what cannot be.
    """

    axes: type[Section]
    runs: Callable[[Config, Sequence[tuple[str, Any]]], Iterator[tuple[MeasuredSpec, Section | None]]]


RUN_KINDS: dict[str, RunKind] = {}
"""By the axis that a kind alone has; chapters of the package add theirs when it is imported."""


@dataclass(frozen=True)
class Run:
    """One row of a study: a network (dense, pruned or recovered) and what measures it."""

    suite: str
    evaluation: MeasuredSpec
    axes: Section | None
    """``Axes``, those of another kind of run, or None for a dense network."""

    @property
    def name(self) -> str:
        return self.evaluation.name

    @property
    def model(self) -> str:
        """Name of the dense network underneath."""
        return self.evaluation.model

    @property
    def read(self) -> list[Spec]:
        """Everything whose numbers stand in its rows."""
        return self.evaluation.read

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
        specs: dict[str, Spec] = {}
        for run in self.runs[suite]:
            self._add(run.evaluation, specs)
        return list(specs.values())

    def needed_by(self, run: Run) -> dict[str, Spec]:
        """Specs a run needs, by manifest, upstream first."""
        specs: dict[str, Spec] = {}
        self._add(run.evaluation, specs)
        return specs

    def _add(self, spec: Spec, specs: dict[str, Spec]) -> None:
        """Add a spec behind what it builds on, unless it is there with all that."""
        manifest = spec.manifest
        if manifest in specs:
            return
        for above in spec.upstream():
            self._add(above, specs)
        if isinstance(spec, ReconstructedSpec):
            specs.update({shard.manifest: shard for shard in spec.split(self.config.execution.shards)})
        specs[manifest] = spec

    def exports(self, suite: str) -> list[ExportSpec]:
        """The pruned and recovered networks of a suite as models of their own: targets that no suite needs."""
        subjects = (run.subject for run in self.runs[suite])
        return [ExportSpec(subject=each) for each in subjects if each is not None and not isinstance(each, ModelSpec)]

    @property
    def wheels(self) -> list[Wheel]:
        """Wheels that models and data of the plan come from."""
        origins = [spec.origin for spec in self.specs.values()]
        return list(dict.fromkeys(each.wheel for each in origins if each is not None and each.wheel is not None))


def walk(spec: Spec) -> Iterator[Spec]:
    """A spec and everything upstream of it, upstream first."""
    for above in spec.upstream():
        yield from walk(above)
    yield spec


def rules() -> list[str]:
    """Rules of the workflow: those of stages, and what comes before and after them."""
    return ["fetch", *STAGES, "collect", "table", "figure", "report"]


def make_plan(config: Config) -> Plan:
    """Expand all suites.

    Raises:
        FreelunchError: a run that cannot be; names the key, the value and what is allowed.
    """
    check_name("default_suite", config.default_suite, config.suites)
    for model in config.models:
        check_model(config, model)
    plan, specs = Plan(config), _Specs(config)
    reserved = {"all", *rules(), *STAGES, "wheels", "logs", "benchmarks"}
    for name, suite in config.suites.items():
        if name in reserved:
            raise FreelunchError(f"suites.{name}: a suite cannot have the name of a rule or of a folder of results")
        check_distinct(name, suite)
        for key, views in VIEWS.items():
            for i, view in enumerate(getattr(suite, key)):
                check_name(f"suites.{name}.{key}[{i}]", view, views)
        plan.runs[name] = list(_runs(specs, name, suite))
        for spec in [*plan.needed(name), *plan.exports(name)]:
            if plan.specs.setdefault(spec.manifest, spec) != spec:
                raise FreelunchError(f"suites.{name}: two different specs share the name {spec.name}")
    return plan


def resolved(plan: Plan, suite: str) -> str:
    """A suite with every default filled in, as YAML; how jobs run is left out, since it changes no result.

    ``shared`` are the axes with one value in all runs, ``runs`` the others, by the name of the run.
    """
    config = plan.config.suites[suite]
    axes = {run.name: run.axes.model_dump(mode="json") for run in plan.runs[suite] if run.axes is not None}
    # kinds of runs have axes of their own
    names = list(dict.fromkeys(name for values in axes.values() for name in values))
    shared = [name for name in names if len({repr(values.get(name)) for values in axes.values()}) == 1]
    entries: dict[str, dict[str, Any]] = {"models": {}, "data": {}}
    for spec in plan.needed(suite):
        if spec.entry is not None:
            section, name, entry = spec.entry
            dump = entry.model_dump(mode="json", exclude_none=True, exclude={"shape"})
            entries.setdefault(section, {})[name] = dump
    values = {
        "suite": suite,
        "description": config.description,
        **entries,
        "shared": {name: next(iter(axes.values())).get(name) for name in shared},
        "runs": {
            run: {name: values[name] for name in names if name in values and name not in shared}
            for run, values in axes.items()
        },
        "evaluate": [task.model_dump(mode="json") for task in config.evaluate],
        "tables": list(config.tables),
        "figures": list(config.figures),
    }
    # in the order given, the axes of a run in a line or two
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None))


# --- runs ------------------------------------------------------------------------------------------------------------


class _Specs:
    """The specs of language models that a config is expanded to, each made and hashed once."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.data, self.model, self.subject = cache(self._data), cache(self._model), cache(self._subject)

    def _data(self, name: str) -> DataSpec:
        return DataSpec(data=name, source=self.config.data[name])

    def _model(self, name: str) -> ModelSpec:
        source = self.config.models[name]
        data = None if source.train is None else self.data(source.train.data)
        return ModelSpec(model=name, source=source, data=data)

    def questions(self, name: str) -> QuestionsSpec:
        fields = self.config.data[name].questions
        assert fields is not None
        return QuestionsSpec(data=self.data(name), fields=fields)

    def _subject(self, axes: Axes) -> OverlaySpec:
        """The network that a run measures."""
        calibration = CalibrationSpec(
            model=self.model(axes.model), data=self.data(axes.calibration), sequences=axes.sequences,
            validation_sequences=axes.validation_sequences, length=axes.length, sampling=axes.sampling, seed=axes.seed,
        )  # fmt: skip
        pruned = PrunedSpec(
            dense=DenseSpec(calibration=calibration), criterion=axes.criterion,
            pattern=axes.pattern, allocation=axes.allocation, refinement=axes.refinement,
            prune_inputs=axes.prune_inputs, seed=axes.seed,
        )  # fmt: skip
        if axes.recovery == "none":
            return pruned
        if axes.recovery == "repair":
            return RepairedSpec(pruned=pruned, repair=axes.repair)
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


def _runs(specs: _Specs, name: str, suite: SuiteConfig) -> Iterator[Run]:
    """For every model its dense run, then those that the entries multiply out to, each once; then other kinds."""
    config = specs.config
    expanded = list(islice(_expand(config, name), LARGEST + 1))
    if len(expanded) > LARGEST:
        raise FreelunchError(f"suites.{name}.runs: are more than {LARGEST:,}; split the suite")
    of_models = [(path, axes) for path, axes in expanded if isinstance(axes, Axes)]
    models = [axes.model for _, axes in of_models] or ([] if expanded else _models_of_defaults(config, name, suite))
    yield from _model_runs(specs, name, suite, of_models, models)
    for kind in RUN_KINDS.values():
        for spec, axes in kind.runs(config, [each for each in expanded if isinstance(each[1], kind.axes)]):
            yield Run(name, spec, axes)


def _expand(config: Config, name: str, within: tuple[str, ...] = ()) -> Iterator[tuple[str, Section]]:
    """Every combination of the axes of every entry of ``runs``, with the path of the entry, those of included suites
    first."""
    suite = config.suites[name]
    for i, other in enumerate(suite.include):
        check_name(f"suites.{name}.include[{i}]", other, config.suites)
        if other in (*within, name):
            raise FreelunchError(f"suites.{name}.include[{i}]: {other} includes {name}")
        yield from _expand(config, other, (*within, name))
    for i, entry in enumerate(suite.runs):
        path = f"suites.{name}.runs[{i}]"
        layers = {f"suites.{name}.defaults": suite.defaults, path: entry}
        kind = next((kind.axes for axis, kind in RUN_KINDS.items() if axis in suite.defaults | entry), Axes)
        if kind is Axes:
            layers = {"defaults": config.defaults} | layers
        lists: dict[str, list[Any]] = {}
        for at, axes in layers.items():
            for axis, value in axes.items():
                if axis not in kind.model_fields:
                    raise FreelunchError(f"{at}.{axis}: unknown key; {suggest(str(axis), kind.model_fields)}")
                # the value of an axis that is a tuple is a list itself
                multiplied = isinstance(value, list) and get_origin(kind.model_fields[axis].annotation) is not tuple
                lists[axis] = value if multiplied else [value]
        for axis, values in lists.items():
            if not values:
                raise FreelunchError(f"{path}.{axis}: the list is empty")
        if prod(map(len, lists.values())) > LARGEST:
            raise FreelunchError(f"{path}: its lists multiply to more than {LARGEST:,} runs; shorten them")
        for combination in product(*lists.values()):
            yield path, validate(kind, dict(zip(lists, combination, strict=True)), path)


# --- runs of language models -----------------------------------------------------------------------------------------


def _model_runs(
    specs: _Specs, name: str, suite: SuiteConfig, runs: Sequence[tuple[str, Axes]], models: Sequence[str]
) -> Iterator[Run]:
    config, path = specs.config, f"suites.{name}.evaluate"
    for entry, axes in runs:
        check_run(config, entry, axes)
    if runs and not suite.evaluate:
        raise FreelunchError(f"{path}: this key is missing; runs of language models need a task")
    for i, task in enumerate(suite.evaluate):
        if runs and not any(_measures(task, axes) for _, axes in runs):
            raise FreelunchError(f"{path}[{i}].only: no run of the suite is so")
    for model in dict.fromkeys(models):
        tasks = [task for i, task in enumerate(suite.evaluate) if check_task(config, task, f"{path}[{i}]", model)]
        if not tasks:
            raise FreelunchError(f"{path}: every task is too long for {model}; add one that it can be measured with")
        dense = specs.model(model)
        of_dense = [task for task in tasks if model in task.only.get("model", [model])]
        yield Run(name, _evaluation(specs, path, dense, of_dense), None)
        # runs that differ in what their recovery does not look at are one
        subjects: dict[str, tuple[OverlaySpec, list[Axes]]] = {}
        for _, axes in runs:
            if axes.model == model:
                subject = specs.subject(axes)
                subjects.setdefault(subject.manifest, (subject, []))[1].append(axes)
        for subject, same in subjects.values():
            of_runs = [task for task in tasks if any(_measures(task, axes) for axes in same)]
            yield Run(name, _evaluation(specs, path, subject, of_runs), same[-1])


def _models_of_defaults(config: Config, name: str, suite: SuiteConfig) -> list[str]:
    """Models of a suite without runs, which measures them as they are."""
    value = (config.defaults | suite.defaults).get("model", [])
    models = value if isinstance(value, list) else [value]
    for model in models:
        check_name(f"suites.{name}.defaults.model", model, config.models)
    return models


def _measures(task: EvaluationTask, axes: Axes) -> bool:
    """Whether a task is for a run."""
    return all(getattr(axes, axis) in values for axis, values in task.only.items())


def _evaluation(
    specs: _Specs, path: str, subject: ModelSpec | OverlaySpec, tasks: Sequence[EvaluationTask]
) -> EvaluationSpec:
    """What a network is measured with, and the data that this takes."""
    if not tasks:
        raise FreelunchError(f"{path}: no task measures {subject.label}; add one that is for all runs")
    texts = dict.fromkeys(task.data for task in tasks if isinstance(task, TextTask))
    asked = dict.fromkeys(task.data for task in tasks if isinstance(task, ZeroShotTask) and task.data is not None)
    data: tuple[DataSpec | QuestionsSpec, ...] = (*map(specs.data, texts), *map(specs.questions, asked))
    return EvaluationSpec(
        subject=subject, data=data, tasks=tuple(task.model_copy(update={"only": {}}) for task in tasks)
    )
