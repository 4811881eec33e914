"""Runs of classifiers: what the config multiplies out to, as specs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from freelunch.patterns import Structured

from ..errors import FreelunchError
from ..plan.specs import ClassifierSpec, ImagesSpec, SparseClassifierSpec
from ..plan.validity import check_name
from .architectures import convolutions
from .config import ClassifierAxes

if TYPE_CHECKING:
    from ..plan.config import Config


def check_classifier_run(config: Config, where: str, axes: ClassifierAxes) -> None:
    """Refuse what the classifiers and images of a config make impossible."""
    check_name(f"{where}.classifier", axes.classifier, config.classifiers)
    check_name(f"{where}.images", axes.images, config.images)
    subject, images = sparse_classifier(config, axes), config.images[axes.images]
    recipe = config.classifiers[axes.classifier]
    layers = list(convolutions(recipe.architecture, images.classes, images.channels, images.size, recipe.channels))
    try:
        if isinstance(subject.method.pattern, Structured):
            raise FreelunchError(f"pattern {subject.method.pattern} is one of attention heads; classifiers have none")
        subject.method.check(len(layers))
        for number, layer in enumerate(layers):
            subject.method.pattern.check(layer.outputs, layer.weights // layer.outputs, f"layer {number} of it")
    except FreelunchError as error:
        raise FreelunchError(f"{where}: {error} ({axes.classifier})") from None
    train = images.splits["train"]
    for name, wanted in (("calibration_images", axes.calibration_images), ("batch_size", recipe.batch_size)):
        if isinstance(train, int) and wanted > train:
            raise FreelunchError(f"{where}: {name} is {wanted}, and images.{axes.images} has {train} to train on")


def classifier_runs(
    config: Config, found: Sequence[ClassifierAxes]
) -> Iterator[tuple[ClassifierSpec | SparseClassifierSpec, ClassifierAxes | None]]:
    """For every trained classifier its dense run, then its pruned ones, each once."""
    pruned: dict[str, tuple[SparseClassifierSpec, ClassifierAxes]] = {}
    for axes in found:
        spec = sparse_classifier(config, axes)
        pruned.setdefault(spec.manifest, (spec, axes))
    for dense in dict.fromkeys(spec.dense.manifest for spec, _ in pruned.values()):
        inside = [(spec, axes) for spec, axes in pruned.values() if spec.dense.manifest == dense]
        yield inside[0][0].dense, None
        yield from inside


def sparse_classifier(config: Config, axes: ClassifierAxes) -> SparseClassifierSpec:
    """The spec of a run."""
    images = ImagesSpec(images=axes.images, source=config.images[axes.images])
    recipe = config.classifiers[axes.classifier]
    dense = ClassifierSpec(classifier=axes.classifier, recipe=recipe, images=images, seed=axes.seed)
    same: dict[str, Any] = {
        name: getattr(axes, name) for name in SparseClassifierSpec.model_fields if name in ClassifierAxes.model_fields
    }
    return SparseClassifierSpec(dense=dense, **same)
