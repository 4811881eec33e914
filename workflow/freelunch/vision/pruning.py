"""Pruning a classifier: the counts and masks of the language models' methods, written into the weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from freelunch.errors import FreelunchError
from freelunch.prune.method import Method
from freelunch.prune.patterns import Structured
from freelunch.prune.pruner import allocate, prune_matrix
from freelunch.vision.layers import layers_of, matrices_of, statistics_of


@torch.no_grad()
def prune(network: nn.Module, method: Method, pixels: Tensor, seed: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    """A pruned copy of a network, and its masks by layer in the shapes of their weights (True = kept).

    All layers together lose exactly what the pattern says.

    Args:
        network: dense.
        method: its criterion must do without statistics of the inputs.
        pixels: ``[images, channels, height, width]``, for allocations that look at inputs.
        seed: of random scores.

    Raises:
        FreelunchError: the pattern is structured, does not fit a layer, or leaves the allocation nothing to do.
    """
    if isinstance(method.pattern, Structured):
        raise FreelunchError(f"pattern {method.pattern} is one of attention heads; classifiers have none")
    matrices = matrices_of(network, seed, statistics_of(network, pixels) if method.needs_gram else None)
    method.check(len(matrices.shapes))
    counts = allocate(method.criterion, method.pattern, method.allocation, matrices)
    pruned = copy.deepcopy(network)
    masks = {}
    for name, layer in layers_of(pruned).items():
        found = prune_matrix(method, matrices.load(name), counts[name])
        masks[name] = found.mask.view_as(layer.weight)
        layer.weight.copy_((found.weight * found.mask).view_as(layer.weight))
    return pruned, masks


def densities(masks: dict[str, Tensor]) -> dict[str, float]:
    """Share of its weights that every layer keeps."""
    return {name: float(mask.double().mean()) for name, mask in masks.items()}
