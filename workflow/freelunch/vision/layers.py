"""Convolutions and linear layers as the matrices that criteria, allocations and patterns know: pruned, and solved for.

A convolution is the matrix ``[outputs, inputs * height * width]`` that multiplies patches of its input. Pixels are
``[images, channels, height, width]``, and are run all at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from freelunch.errors import FreelunchError
from freelunch.pruning.hessian import masked_least_squares, solvable
from freelunch.pruning.matrix import Matrices, Matrix, Statistics
from freelunch.pruning.method import Method
from freelunch.pruning.patterns import Structured
from freelunch.pruning.pruner import allocate, prune_matrix
from freelunch.recover.reconstruct import DAMPING

Layer = nn.Conv2d | nn.Linear


def layers_of(network: nn.Module) -> dict[str, Layer]:
    """All convolutions and linear layers by name, in the order of definition."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


def convolutions_of(network: nn.Module) -> dict[str, nn.Conv2d]:
    """All convolutions by name, in the order of definition."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}


def norms_of(network: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """All batch norms by name, in the order of definition."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}


@contextmanager
def hooked(layers: Mapping[str, nn.Module], hook: Callable[..., Tensor | None]) -> Iterator[None]:
    """Call ``hook(name, layer, inputs, outputs)`` after each layer; a tensor that it returns replaces the outputs."""
    handles = [layer.register_forward_hook(partial(hook, name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def patches(layer: Layer, inputs: Tensor) -> Tensor:
    """What the rows of a layer's matrix are multiplied with ``[images * positions, columns]``."""
    if isinstance(layer, nn.Linear):
        return inputs.flatten(0, -2)
    # the networks pad with zeros, by as much on all sides
    pad, stride, side = (tuple(map(int, each)) for each in (layer.padding, layer.stride, layer.kernel_size))
    return functional.unfold(inputs, side, padding=pad, stride=stride).transpose(1, 2).flatten(0, 1)


@torch.no_grad()
def statistics_of(network: nn.Module, pixels: Tensor) -> dict[str, Statistics]:
    """Statistics of the inputs of every layer, Gram matrices too; a token is a patch, as :func:`patches` gives them."""
    statistics: dict[str, Statistics] = {}

    def collect(name: str, layer: Layer, inputs: tuple[Tensor], outputs: Tensor) -> None:
        rows = patches(layer, inputs[0])
        sums, squares = rows.sum(0, dtype=torch.float64), rows.square().sum(0, dtype=torch.float64)
        statistics[name] = Statistics(len(rows), sums, squares, rows.T @ rows)

    with hooked(layers_of(network), collect):
        network.eval()(pixels)
    return statistics


def matrices_of(network: nn.Module, seed: int = 0, inputs: Mapping[str, Statistics] | None = None) -> Matrices:
    """The prunable matrices of a network; shapes keep all sides of a kernel, which ERK adds up.

    Without ``inputs`` (see :func:`statistics_of`) the statistics are those of no token.
    """
    layers = layers_of(network)

    def load(name: str) -> Matrix:
        weight = layers[name].weight.detach().flatten(1).float()
        zeros = torch.zeros(weight.shape[1], dtype=torch.float64)
        return Matrix(name, weight, inputs[name] if inputs else Statistics(0, zeros, zeros), seed=seed)

    shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items()}
    return Matrices(shapes, {name: index for index, name in enumerate(layers)}, load)


@torch.no_grad()
def prune(network: nn.Module, method: Method, pixels: Tensor, seed: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    """A pruned copy of a network, and its masks by layer in the shapes of their weights (True = kept).

    All layers together lose exactly what the pattern says. The criterion must do without statistics of the inputs;
    pixels are for allocations that look at these, the seed for random scores.

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
        result = prune_matrix(method, matrices.load(name), counts[name])
        masks[name] = result.mask.view_as(layer.weight)
        layer.weight.copy_((result.weight * result.mask).view_as(layer.weight))
    return pruned, masks


@torch.no_grad()
def solve(
    dense: nn.Module, pruned: nn.Module, masks: Mapping[str, Tensor], pixels: Tensor, damping: float = DAMPING
) -> None:
    """Give the layers of a pruned network the least-squares weights under their masks, in place.

    On dense inputs and outputs, as window ``matrix_exact``: the upper reference of repairs, since it changes all
    weights that stay, where a repair has one number per channel or layer. Biases stay: the head has the only one, and
    its inputs are not centred. ``damping`` times the mean diagonal of a Gram matrix is added to it.
    """
    originals, inputs = layers_of(dense), statistics_of(dense, pixels)
    for name, layer in layers_of(pruned).items():
        gram = inputs[name].gram
        assert gram is not None
        hessian = solvable(gram, damping)
        solved = masked_least_squares(originals[name].weight.flatten(1), masks[name].flatten(1), hessian)
        layer.weight.copy_(solved.view_as(layer.weight))
