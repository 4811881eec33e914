"""What pruning did to every layer by itself: on the dense network's inputs, whatever the layers before it became."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from freelunch.prune.hessian import relative_repairability
from freelunch.vision.layers import Layer, channels, hooked, layers_of
from freelunch.vision.repair import paired_moments


@dataclass(frozen=True)
class Diagnostics:
    """Of one layer.

    Attributes:
        repairability: residual over raw distortion of its outputs under channelwise scales; lower is better
            (arXiv 2605.25508).
        variance_ratio: mean variance of its pruned outputs over that of its dense ones.
    """

    repairability: float
    variance_ratio: float


@torch.no_grad()
def diagnose(dense: nn.Module, pruned: nn.Module, pixels: Tensor) -> dict[str, Diagnostics]:
    """Diagnostics of every convolution and linear layer by name; layers whose outputs never vary are left out.

    Args:
        dense: the network before pruning.
        pruned: the same with pruned weights.
        pixels: ``[images, channels, height, width]``, run all at once.
    """
    found: dict[str, Diagnostics] = {}
    others = layers_of(pruned)

    def compare(name: str, layer: Layer, inputs: tuple[Tensor], outputs: Tensor) -> None:
        moments = paired_moments(channels(outputs), channels(others[name](inputs[0])))
        if bool((moments.dense > 0).any()):
            ratio = float(moments.sparse.sum() / moments.dense.sum())
            found[name] = Diagnostics(relative_repairability(moments), ratio)

    with hooked(layers_of(dense), compare):
        dense.eval()(pixels)
    return found
