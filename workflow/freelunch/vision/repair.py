"""Label-free repair: the rows of every convolution are scaled so that its outputs vary as much as the dense ones.

The scales are those of the language models (``recovery.repair``); what differs is where the variances come from. Layers
are visited in forward order, and each sees what the repaired layers before it give. Norms keep the dense statistics
meanwhile; a recalibration should follow.

Where a batch norm follows a convolution directly, that recalibration undoes the scales: ``(g x - g mean) /
sqrt(g^2 var + eps)`` depends on ``g`` only through ``eps``. Such a repair can differ from recalibration alone only in
channels whose variance pruning has brought near ``eps``, as a recalibration with a much smaller epsilon shows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from freelunch.prune.hessian import Moments
from freelunch.recover.repair import Mode, scales
from freelunch.vision.layers import channels, convolutions_of, hooked


@torch.no_grad()
def repair(dense: nn.Module, pruned: nn.Module, pixels: Tensor, mode: Mode) -> dict[str, Moments]:
    """Scale the convolutions of a pruned network in place; gives their moments before they were scaled.

    Args:
        dense: the network before pruning.
        pruned: pruned weights, and norms as in the dense network.
        pixels: ``[images, channels, height, width]``, run all at once.
        mode: what one scale is fitted to.
    """
    kept: dict[str, Tensor] = {}
    moments: dict[str, Moments] = {}

    def keep(name: str, layer: nn.Module, inputs: tuple[Tensor], outputs: Tensor) -> None:
        kept[name] = outputs

    def scale(name: str, layer: nn.Conv2d, inputs: tuple[Tensor], outputs: Tensor) -> Tensor:
        moments[name] = paired_moments(channels(kept.pop(name)), channels(outputs))
        factors = scales(moments[name], mode).to(outputs)
        layer.weight.mul_(factors.view(-1, 1, 1, 1))
        return outputs * factors.view(-1, 1, 1)

    with hooked(convolutions_of(dense), keep):
        dense.eval()(pixels)
    with hooked(convolutions_of(pruned), scale):
        pruned.eval()(pixels)
    return moments


def paired_moments(dense: Tensor, sparse: Tensor) -> Moments:
    """Moments of paired outputs ``[channels, samples]``, biased."""
    dense, sparse = (each.double() - each.double().mean(1, keepdim=True) for each in (dense, sparse))
    own, other, common = (each.mean(1) for each in (dense * dense, sparse * sparse, dense * sparse))
    return Moments(own, other, common, dense.shape[1])
