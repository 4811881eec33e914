"""Memory of classifiers. Pixels and weights are float32 on the device, images as they are read on the host."""

from __future__ import annotations

from typing import get_args

from ...plan.config import Config
from ...vision.architectures import Convolution
from ...vision.runs import ClassifierSpec, ImagesSpec, SparseClassifierSpec
from ...vision.sections import Repair
from ..vision import layers_of, pixels, weights
from .machine import machine_of
from .peak import PLAIN, Peak, Phase, peak

_TEST_BATCH = 100


def images(config: Config, spec: ImagesSpec) -> Peak:
    """Bytes, float32, and bytes again, twice while they are joined."""
    return peak(machine_of(config.execution), PLAIN, [Phase(host=7.0 * pixels(spec))])


def train(config: Config, spec: ClassifierSpec) -> Peak:
    """Weights, gradients and momenta; of a batch the outputs of convolutions, norms and activations."""
    layers = layers_of(spec)
    held = 12.0 * weights(layers) + 3 * 4 * spec.recipe.batch_size * _outputs(layers)
    return _peak(config, spec.images, held)


def prune(config: Config, spec: SparseClassifierSpec) -> Peak:
    """The dense, the pruned and a repaired network; the calibration images at once, and the patches of a layer."""
    layers = layers_of(spec.dense)
    count = spec.calibration_images
    largest = max(each.outputs * each.positions for each in layers)
    held = 3.0 * weights(layers) + 4 * max(count, _TEST_BATCH) * largest
    if set(spec.backends) & set(get_args(Repair)):
        # the dense outputs of all convolutions, which the pruned ones are compared with
        held += count * _outputs(layers)
    if "reconstruct" in spec.backends or spec.method.needs_gram:
        widest = max(each.inputs * each.side**2 * each.positions for each in layers)
        held += 2 * count * widest + sum((each.inputs * each.side**2) ** 2 for each in layers)
    return _peak(config, spec.dense.images, 4 * held)


def _outputs(layers: list[Convolution]) -> int:
    """Numbers that the layers give for one image, or read if that is more: what DenseNets join."""
    return sum(max(each.outputs, each.inputs * (each.side == 1)) * each.positions for each in layers)


def _peak(config: Config, spec: ImagesSpec, held: float) -> Peak:
    # as float32, and normalised, on the host, which then holds none; normalised on the device
    phase = Phase(device=4.0 * pixels(spec) + held, host=8.0 * pixels(spec))
    return peak(machine_of(config.execution), PLAIN, [phase])
