"""Disk and operations of classifiers: images, training, pruning and repair."""

from __future__ import annotations

from ..plan.config import Config
from ..vision.architectures import Convolution, convolutions
from ..vision.runs import ClassifierSpec, ImagesSpec, SparseClassifierSpec
from .basis import Cost

_UNKNOWN = {"hub": 60_000, "path": 15_000}
"""Images of a source whose splits have names: what CIFAR and Imagenette have, more or less."""


def images(config: Config, spec: ImagesSpec) -> Cost:
    """Pixels are bytes."""
    return Cost(disk=pixels(spec))


def train(config: Config, spec: ClassifierSpec) -> Cost:
    """Float32 weights; a forward and a backward pass over every image of every epoch, and one to measure."""
    layers = layers_of(spec)
    passes = (3 * spec.recipe.epochs + 1) * count(spec.images, "train") + count(spec.images, "test")
    return Cost(disk=4 * weights(layers), operations=passes * forward(layers))


def prune(config: Config, spec: SparseClassifierSpec) -> Cost:
    """Masks; every backend passes over the calibration images about three times and once over the test images."""
    layers = layers_of(spec.dense)
    passes = count(spec.dense.images, "test") * len(spec.backends)
    passes += spec.calibration_images * (3 * len(spec.backends) + 2)
    return Cost(disk=weights(layers) / 8, operations=passes * forward(layers))


def layers_of(spec: ClassifierSpec) -> list[Convolution]:
    """The layers of a classifier."""
    source, recipe = spec.images.source, spec.recipe
    return list(convolutions(recipe.architecture, source.classes, source.channels, source.size, recipe.channels))


def weights(layers: list[Convolution]) -> int:
    """Weights of all layers."""
    return sum(each.weights for each in layers)


def forward(layers: list[Convolution]) -> float:
    """Operations of a forward pass of one image."""
    return 2.0 * sum(each.weights * each.positions for each in layers)


def count(spec: ImagesSpec, part: str) -> int:
    """Images of a split; a guess where the source's own splits are named."""
    split = next(value for name, value in spec.source.splits.items() if name == part)
    return split if isinstance(split, int) else spec.source.max_images or _UNKNOWN[spec.source.kind]


def pixels(spec: ImagesSpec) -> int:
    """Numbers of all images, those of colours counted each."""
    return sum(count(spec, part) for part in ("train", "test")) * spec.source.channels * spec.source.size**2
