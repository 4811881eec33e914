"""What the stages of classifiers take: images, training, pruning and repair.

Pixels and weights are float32 on the device, images as they are read on the host.
"""

from __future__ import annotations

from typing import get_args

from freelunch.costs import PLAIN, Cost, cost, job
from freelunch.engine.accelerators import has_accelerator
from freelunch.plan.config import Config
from freelunch.vision.architectures import TEST_BATCH, Convolution, convolutions
from freelunch.vision.runs import ClassifierSpec, ImagesSpec, SparseClassifierSpec
from freelunch.vision.sections import PARTS, Part, Repair

_IMAGES = {"hub": 60_000, "path": 15_000}
"""Assumed of a source whose splits have names: what CIFAR and Imagenette have, more or less."""


@cost.register
def _images(spec: ImagesSpec, config: Config) -> Cost:
    """Bytes, float32, and bytes again, twice while they are joined."""
    return job(has_accelerator(config.execution.device), PLAIN, [Cost(disk=_pixels(spec), host=7.0 * _pixels(spec))])


@cost.register
def _trained(spec: ClassifierSpec, config: Config) -> Cost:
    """A forward and a backward pass over every image of every epoch, and one to measure.

    Held are weights, gradients and momenta; of a batch the outputs of convolutions, norms and activations.
    """
    layers = _layers(spec)
    weights = sum(each.weights for each in layers)
    passes = (3 * spec.recipe.epochs + 1) * _count(spec.images, "train") + _count(spec.images, "test")
    held = 12.0 * weights + 12.0 * spec.recipe.batch_size * _outputs(layers)
    return _job(config, spec.images, passes * _forward(layers), held, 4 * weights)


@cost.register
def _pruned(spec: SparseClassifierSpec, config: Config) -> Cost:
    """Every backend passes over the calibration images about three times and once over the test images.

    Held are the dense, the pruned and a repaired network; the calibration images at once, and the patches of a layer.
    """
    layers, count, images = _layers(spec.dense), spec.calibration_images, spec.dense.images
    weights = sum(each.weights for each in layers)
    passes = _count(images, "test") * len(spec.backends) + count * (3 * len(spec.backends) + 2)
    held = 3.0 * weights + max(count, TEST_BATCH) * 4 * max(each.outputs * each.positions for each in layers)
    if set(spec.backends) & set(get_args(Repair)):
        # the dense outputs of all convolutions, which the pruned ones are compared with
        held += count * _outputs(layers)
    if "reconstruct" in spec.backends or spec.method.needs_gram:
        widest = max(each.inputs * each.side**2 * each.positions for each in layers)
        held += 2 * count * widest + sum((each.inputs * each.side**2) ** 2 for each in layers)
    return _job(config, images, passes * _forward(layers), 4 * held, weights / 8)


def _job(config: Config, images: ImagesSpec, operations: float, held: float, disk: float) -> Cost:
    # as float32, and normalised, on the host, which then holds none; normalised on the device
    work = Cost(operations, disk, 4.0 * _pixels(images) + held, 8.0 * _pixels(images))
    return job(has_accelerator(config.execution.device), PLAIN, [work])


def _layers(spec: ClassifierSpec) -> list[Convolution]:
    source, recipe = spec.images.source, spec.recipe
    return list(convolutions(recipe.architecture, source.classes, source.channels, source.size, recipe.channels))


def _forward(layers: list[Convolution]) -> float:
    """Operations of a forward pass of one image."""
    return 2.0 * sum(each.weights * each.positions for each in layers)


def _outputs(layers: list[Convolution]) -> int:
    """Numbers that the layers compute of one image, or read if these are more: what DenseNets join."""
    return sum(max(each.outputs, each.inputs * (each.side == 1)) * each.positions for each in layers)


def _count(spec: ImagesSpec, part: Part) -> int:
    """Images of a split; a guess where the source's own splits are named."""
    split = spec.source.splits[part]
    return split if isinstance(split, int) else spec.source.max_images or _IMAGES[spec.source.kind]


def _pixels(spec: ImagesSpec) -> int:
    """Numbers of all images, those of colours counted each."""
    return sum(_count(spec, part) for part in PARTS) * spec.source.channels * spec.source.size**2
