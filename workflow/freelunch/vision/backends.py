"""Label-free backends by name: what is done to a pruned classifier with a few images, each on its own copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import get_args

from torch import Tensor, nn

from freelunch.errors import FreelunchError, suggest
from freelunch.recover.repair import Mode
from freelunch.vision import batchnorm
from freelunch.vision.reconstruct import reconstruct
from freelunch.vision.repair import repair
from freelunch.vision.sections import BACKENDS

EPSILON = 1e-12
"""Of the control's batch norms."""


def recovered(
    backend: str, dense: nn.Module, pruned: nn.Module, masks: Mapping[str, Tensor], pixels: Tensor, batch_size: int
) -> nn.Module:
    """A copy of a pruned network after a backend.

    Args:
        backend: one of :data:`BACKENDS`.
        dense: the network before pruning.
        pruned: stays as it is.
        masks: of the pruned network, by layer.
        pixels: calibration images ``[images, channels, height, width]``.
        batch_size: of the cumulative recalibration; the others run all images at once.

    Raises:
        FreelunchError: there is no such backend.
    """
    if backend not in BACKENDS:
        raise FreelunchError(f"there is no backend {backend!r}; {suggest(backend, BACKENDS)}")
    network = copy.deepcopy(pruned)
    if backend == "none":
        return network
    if backend == "recalibrate_cumulative":
        batchnorm.recalibrate_cumulative(network, pixels, batch_size)
        return network
    if backend == "recalibrate_epsilon":
        batchnorm.set_epsilon(network, EPSILON)
    elif backend == "reconstruct":
        reconstruct(dense, network, masks, pixels)
    for mode in get_args(Mode):
        if backend == mode:
            repair(dense, network, pixels, mode)
    batchnorm.recalibrate_layers(network, pixels)
    return network
