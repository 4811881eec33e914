"""Convolutions and linear layers of a network as the matrices that criteria, allocations and patterns know.

A convolution is the matrix ``[outputs, inputs * height * width]`` that multiplies patches of its input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from freelunch.prune.matrix import Matrices, Matrix, Statistics

Layer = nn.Conv2d | nn.Linear


def layers_of(network: nn.Module) -> dict[str, Layer]:
    """All convolutions and linear layers by name, in the order of definition."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


def convolutions_of(network: nn.Module) -> dict[str, nn.Conv2d]:
    """All convolutions by name, in the order of definition."""
    return {name: layer for name, layer in layers_of(network).items() if isinstance(layer, nn.Conv2d)}


def norms_of(network: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """All batch norms by name, in the order of definition."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}


def matrices_of(network: nn.Module, seed: int = 0, inputs: Mapping[str, Statistics] | None = None) -> Matrices:
    """The prunable matrices of a network; shapes keep all sides of a kernel, which ERK adds up.

    Without ``inputs`` (see :func:`statistics_of`) nothing is known of what they read.
    """
    layers = layers_of(network)

    def load(name: str) -> Matrix:
        weight = layers[name].weight.detach().flatten(1).float()
        if inputs is not None:
            return Matrix(name, weight, inputs[name], seed=seed)
        none = torch.zeros(weight.shape[1], dtype=torch.float64)
        return Matrix(name, weight, Statistics(0, none, none), seed=seed)

    shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items()}
    return Matrices(shapes, {name: index for index, name in enumerate(layers)}, load)


@torch.no_grad()
def statistics_of(network: nn.Module, pixels: Tensor) -> dict[str, Statistics]:
    """Statistics of what every layer reads, Gram matrices too, on images ``[images, channels, height, width]``.

    A token is a patch, as :func:`patches` gives them.
    """
    found: dict[str, Statistics] = {}

    def collect(name: str, layer: Layer, inputs: tuple[Tensor], outputs: Tensor) -> None:
        rows = patches(layer, inputs[0])
        sums, squares = rows.sum(0, dtype=torch.float64), rows.square().sum(0, dtype=torch.float64)
        found[name] = Statistics(len(rows), sums, squares, rows.T @ rows)

    with hooked(layers_of(network), collect):
        network.eval()(pixels)
    return found


@contextmanager
def hooked(layers: Mapping[str, nn.Module], hook: Callable[..., Tensor | None]) -> Iterator[None]:
    """Call ``hook(name, layer, inputs, outputs)`` after each of some layers; what it gives replaces the outputs."""
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


def channels(outputs: Tensor) -> Tensor:
    """Outputs of a layer by channel ``[channels, images * positions]``."""
    return outputs.transpose(0, 1).flatten(1)
