"""Classifiers: images, training, pruning and repair."""

from __future__ import annotations

from ..config import Config
from ..specs import ClassifierSpec, ImagesSpec, SparseClassifierSpec
from ..vision.architectures import Convolution, convolutions
from .basis import PROCESS_BYTES, Cost

_UNKNOWN = {"wheel": 5_000, "hub": 60_000, "path": 15_000}
"""Images of a source whose splits have names: what CIFAR and Imagenette have, more or less."""
_TEST_BATCH = 100


def images(config: Config, spec: ImagesSpec) -> Cost:
    """Bytes on disk, float32 in memory."""
    pixels = sum(_count(spec, part) for part in ("train", "test")) * spec.source.channels * spec.source.size**2
    return Cost(disk=pixels, memory=PROCESS_BYTES + 6 * pixels)


def train(config: Config, spec: ClassifierSpec) -> Cost:
    """Weights, gradients, momenta; of a batch the inputs of convolutions, norms and activations."""
    layers, recipe = _layers(spec), spec.recipe
    seen = recipe.epochs * _count(spec.images, "train")
    measured = _count(spec.images, "train") + _count(spec.images, "test")
    weights, activations = sum(each.weights for each in layers), 3 * 4 * recipe.batch_size * _outputs(layers)
    return Cost(
        disk=4 * weights,
        memory=PROCESS_BYTES + _in_memory(spec.images) + 12 * weights + activations,
        operations=(3 * seen + measured) * _operations(layers),
    )


def prune(config: Config, spec: SparseClassifierSpec) -> Cost:
    """The dense, the pruned and a repaired network; the calibration images at once, and the patches of a layer."""
    layers = _layers(spec.dense)
    weights, batch = sum(each.weights for each in layers), max(spec.calibration_images, _TEST_BATCH)
    widest = max(each.inputs * each.side**2 * each.positions for each in layers)
    grams = sum((each.inputs * each.side**2) ** 2 for each in layers)
    solved = "reconstruct" in spec.backends or spec.method.needs_gram
    outputs = max(each.outputs * each.positions for each in layers)
    kept = spec.calibration_images * (_outputs(layers) if set(spec.backends) & {"channel", "layer", "shrink"} else 0)
    memory = 3 * weights + batch * 4 * outputs + kept + (spec.calibration_images * 2 * widest + grams) * solved
    # a forward pass and one more for each recalibration; networks are compared layer by layer
    passes = _count(spec.dense.images, "test") * len(spec.backends)
    passes += spec.calibration_images * (3 * len(spec.backends) + 2)
    return Cost(
        disk=weights / 8,
        memory=PROCESS_BYTES + _in_memory(spec.dense.images) + 4 * memory,
        operations=passes * _operations(layers),
    )


def _layers(spec: ClassifierSpec) -> list[Convolution]:
    source, recipe = spec.images.source, spec.recipe
    return list(convolutions(recipe.architecture, source.classes, source.channels, source.size, recipe.channels))


def _operations(layers: list[Convolution]) -> float:
    """Of a forward pass of one image."""
    return 2.0 * sum(each.weights * each.positions for each in layers)


def _outputs(layers: list[Convolution]) -> int:
    """Numbers that the layers give for one image."""
    return sum(each.outputs * each.positions for each in layers)


def _count(spec: ImagesSpec, part: str) -> int:
    split = next(value for name, value in spec.source.splits.items() if name == part)
    return split if isinstance(split, int) else spec.source.max_images or _UNKNOWN[spec.source.kind]


def _in_memory(spec: ImagesSpec) -> float:
    # as read, as float32, and normalised
    return 9.0 * sum(_count(spec, part) for part in ("train", "test")) * spec.source.channels * spec.source.size**2
