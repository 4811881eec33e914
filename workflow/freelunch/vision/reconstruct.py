"""Local reconstruction of a classifier: every pruned layer is solved for, on dense inputs, as window ``matrix_exact``.

The upper reference of repairs: it changes all weights that stay, where a repair has one number per channel or layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from freelunch.prune.hessian import masked_least_squares, solvable
from freelunch.recover.reconstruct import DAMPING
from freelunch.vision.layers import layers_of, statistics_of


@torch.no_grad()
def reconstruct(
    dense: nn.Module, pruned: nn.Module, masks: Mapping[str, Tensor], pixels: Tensor, damping: float = DAMPING
) -> None:
    """Give the layers of a pruned network the least-squares weights under their masks, in place.

    Biases stay: the head has the only one, and its inputs are not centred. A recalibration should follow.

    Args:
        dense: the network before pruning, whose inputs and outputs count.
        pruned: the network that is changed.
        masks: by layer, in the shapes of the weights (True = kept).
        pixels: ``[images, channels, height, width]``, run all at once.
        damping: share of the mean diagonal of a Gram matrix that is added to it.
    """
    originals, inputs = layers_of(dense), statistics_of(dense, pixels)
    for name, layer in layers_of(pruned).items():
        gram = inputs[name].gram
        assert gram is not None
        hessian = solvable(gram, damping)
        solved = masked_least_squares(originals[name].weight.flatten(1), masks[name].flatten(1), hessian)
        layer.weight.copy_(solved.view_as(layer.weight))
