"""Convolutions and linear layers of a network as the matrices that criteria, allocations and patterns know.

A convolution is the matrix ``[outputs, inputs * height * width]`` that multiplies patches of its input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..matrix import Matrices, Matrix
from ..statistics import Statistics

Layer = nn.Conv2d | nn.Linear


def layers_of(network: nn.Module) -> dict[str, Layer]:
    """All convolutions and linear layers by name, in the order of definition."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


def norms_of(network: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """All batch norms by name, in the order of definition."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}


def matrices_of(network: nn.Module, seed: int = 0) -> Matrices:
    """The prunable matrices of a network; shapes keep all sides of a kernel, which ERK adds up."""
    layers = layers_of(network)

    def load(name: str) -> Matrix:
        weight = layers[name].weight.detach().flatten(1).float()
        none = torch.zeros(weight.shape[1], dtype=torch.float64)
        return Matrix(name, weight, Statistics(0, none, none), seed=seed)

    shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items()}
    return Matrices(shapes, {name: index for index, name in enumerate(layers)}, load)


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
