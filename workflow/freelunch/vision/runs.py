"""Runs of classifiers: their specs, and what the config multiplies out to. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

from freelunch.errors import FreelunchError
from freelunch.plan.config import Config, ExecutionConfig
from freelunch.plan.plan import RUN_KINDS, RunKind
from freelunch.plan.section import Section
from freelunch.plan.spec import MeasuredSpec, Spec
from freelunch.plan.validity import check_name
from freelunch.pruning.method import Method, parse_method
from freelunch.pruning.methods import slug
from freelunch.pruning.patterns import Structured
from freelunch.vision.architectures import convolutions
from freelunch.vision.sections import Backend, ClassifierAxes, ClassifierConfig, ImagesConfig, VisionConfig

_FEW = 1e15
"""Operations of a job that takes a minute or two."""


class ImagesSpec(Spec):
    """The images of a data set and their labels, in splits."""

    stage: Literal["images"] = "images"
    work: ClassVar[str] = "prepare images"
    minutes: ClassVar[int] = 240
    images: str
    source: ImagesConfig

    @property
    def label(self) -> str:
        return self.images

    @property
    def entry(self) -> tuple[str, str, Section]:
        return "images", self.images, self.source


class ClassifierSpec(MeasuredSpec):
    """A dense classifier, trained."""

    stage: Literal["classifiers"] = "classifiers"
    work: ClassVar[str] = "train classifier"
    minutes: ClassVar[int] = 1440
    computes: ClassVar[bool] = True
    rows: ClassVar[str] = "stages.classifier_rows:classifier_rows"
    classifier: str
    recipe: ClassifierConfig
    images: ImagesSpec
    seed: int

    @property
    def label(self) -> str:
        return f"{self.model}-seed{self.seed}"

    @property
    def entry(self) -> tuple[str, str, Section]:
        return "classifiers", self.classifier, self.recipe

    @property
    def model(self) -> str:
        """Without the seed, for which rows have a column."""
        return f"{self.classifier}-{self.images.label}"

    @property
    def read(self) -> list[Spec]:
        return [self]

    def small(self, operations: float) -> bool:
        return operations < _FEW

    def remedy(self, execution: ExecutionConfig) -> str:
        return f"lower classifiers.{self.classifier}.batch_size ({self.recipe.batch_size})"

    def upstream(self) -> list[Spec]:
        return [self.images]


class SparseClassifierSpec(MeasuredSpec):
    """Masks of a pruned classifier, and its accuracy after every backend, each from the same pruned network.

    One stage for all of them: a backend takes less time than a job does to start.
    """

    stage: Literal["sparse_classifiers"] = "sparse_classifiers"
    work: ClassVar[str] = "prune and repair classifier"
    minutes: ClassVar[int] = 240
    computes: ClassVar[bool] = True
    rows: ClassVar[str] = ClassifierSpec.rows
    dense: ClassifierSpec
    criterion: str
    pattern: str
    allocation: str
    calibration_images: int
    batch_size: int
    backends: tuple[Backend, ...]

    @property
    def label(self) -> str:
        parts = [self.dense.label, slug(self.criterion), self.method.pattern.slug]
        return "-".join(parts + [slug(text) for text in (self.allocation,) if text != "uniform"])

    @cached_property
    def method(self) -> Method:
        """Criterion, pattern and allocation, parsed."""
        return parse_method(self.criterion, self.pattern, self.allocation, "none")

    @property
    def modules(self) -> list[str]:
        return self.method.modules

    @property
    def model(self) -> str:
        return self.dense.model

    @property
    def read(self) -> list[Spec]:
        return [self, self.dense]

    def small(self, operations: float) -> bool:
        return operations < _FEW

    def remedy(self, execution: ExecutionConfig) -> str:
        return f"lower batch_size ({self.batch_size}) or calibration_images ({self.calibration_images})"

    def upstream(self) -> list[Spec]:
        return [self.dense.images, self.dense]


def _runs(
    config: Config, runs: Sequence[tuple[str, ClassifierAxes]]
) -> Iterator[tuple[MeasuredSpec, ClassifierAxes | None]]:
    """For every trained classifier its dense run, then its pruned ones, each once."""
    assert isinstance(config, VisionConfig)
    pruned: dict[str, dict[str, tuple[SparseClassifierSpec, ClassifierAxes]]] = {}
    for path, axes in runs:
        spec = _sparse_classifier(config, path, axes)
        pruned.setdefault(spec.dense.manifest, {}).setdefault(spec.manifest, (spec, axes))
    for of_dense in pruned.values():
        yield next(spec.dense for spec, _ in of_dense.values()), None
        yield from of_dense.values()


RUN_KINDS["classifier"] = RunKind(ClassifierAxes, _runs)


def _sparse_classifier(config: VisionConfig, path: str, axes: ClassifierAxes) -> SparseClassifierSpec:
    """The spec of a run; what the classifiers and images of a config make impossible is refused."""
    check_name(f"{path}.classifier", axes.classifier, config.classifiers)
    check_name(f"{path}.images", axes.images, config.images)
    recipe, images = config.classifiers[axes.classifier], config.images[axes.images]
    source = ImagesSpec(images=axes.images, source=images)
    dense = ClassifierSpec(classifier=axes.classifier, recipe=recipe, images=source, seed=axes.seed)
    same: dict[str, Any] = {
        name: getattr(axes, name) for name in SparseClassifierSpec.model_fields if name in ClassifierAxes.model_fields
    }
    spec = SparseClassifierSpec(dense=dense, **same)
    layers = list(convolutions(recipe.architecture, images.classes, images.channels, images.size, recipe.channels))
    try:
        if isinstance(spec.method.pattern, Structured):
            raise FreelunchError(f"pattern {spec.method.pattern} is one of attention heads; classifiers have none")
        spec.method.check(len(layers))
        for number, layer in enumerate(layers):
            spec.method.pattern.check(layer.outputs, layer.weights // layer.outputs, f"layer {number} of it")
    except FreelunchError as error:
        raise FreelunchError(f"{path}: {error} ({axes.classifier})") from None
    train = images.splits["train"]
    for name, wanted in (("calibration_images", axes.calibration_images), ("batch_size", recipe.batch_size)):
        if isinstance(train, int) and wanted > train:
            raise FreelunchError(f"{path}: {name} is {wanted}, and images.{axes.images} has {train} to train on")
    return spec
