"""Shapes of classifiers: what the plan must know of them. Imports no torch.

ResNets (He et al. 2016, arXiv 1512.03385; shortcuts are 1×1 convolutions where the shape changes) and DenseNets (Huang
et al. 2017, arXiv 1608.06993), with the stems that images of 32 pixels want: no pooling, no stride before the first
stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from freelunch.errors import FreelunchError, suggest

TEST_BATCH = 100
"""Images that are measured at a time."""


@dataclass(frozen=True)
class Shape:
    """Depth of an architecture: blocks of every stage, and of what kind they are."""

    kind: Literal["basic", "bottleneck", "dense"]
    blocks: tuple[int, ...]
    width: int
    """Channels of the first stage of a ResNet, growth rate of a DenseNet."""

    @property
    def expansion(self) -> int:
        """Channels that a residual block gives, per channel of its 3×3 convolutions."""
        return 4 if self.kind == "bottleneck" else 1


ARCHITECTURES = {
    "resnet18": Shape("basic", (2, 2, 2, 2), 64),
    "resnet34": Shape("basic", (3, 4, 6, 3), 64),
    "resnet50": Shape("bottleneck", (3, 4, 6, 3), 64),
    "densenet121": Shape("dense", (6, 12, 24, 16), 32),
}


def check_architecture(name: str) -> str:
    """Refuse the name of an architecture that there is not.

    Raises:
        FreelunchError: there is no such architecture.
    """
    if name not in ARCHITECTURES:
        raise FreelunchError(f"there is no network {name!r}; {suggest(name, ARCHITECTURES)}")
    return name


@dataclass(frozen=True)
class Convolution:
    """A convolution without bias, or the head as one of side 1 at a single position.

    Attributes:
        outputs: channels that it gives.
        inputs: channels that it reads.
        side: of its kernel.
        positions: at which it is applied.
    """

    outputs: int
    inputs: int
    side: int
    positions: int

    @property
    def weights(self) -> int:
        return self.outputs * self.inputs * self.side**2


def convolutions(architecture: str, classes: int, channels: int, size: int, width: int) -> Iterator[Convolution]:
    """All convolutions and the head, in the order of definition.

    Args:
        architecture: one of :data:`ARCHITECTURES`.
        classes: outputs of the head.
        channels: of an image.
        size: its side.
        width: see :class:`Shape`.
    """
    shape = ARCHITECTURES[architecture]
    yield from (_dense if shape.kind == "dense" else _residual)(shape, classes, channels, size, width)


def _residual(shape: Shape, classes: int, channels: int, size: int, width: int) -> Iterator[Convolution]:
    yield Convolution(width, channels, 3, size**2)
    inputs = width
    for stage, count in enumerate(shape.blocks):
        inner, outputs = width * 2**stage, width * 2**stage * shape.expansion
        for index in range(count):
            strided = bool(stage) and not index
            before, size = size, -(-size // 2) if strided else size
            if shape.expansion == 1:
                yield Convolution(inner, inputs, 3, size**2)
                yield Convolution(inner, inner, 3, size**2)
            else:
                yield Convolution(inner, inputs, 1, before**2)
                yield Convolution(inner, inner, 3, size**2)
                yield Convolution(outputs, inner, 1, size**2)
            if strided or inputs != outputs:
                yield Convolution(outputs, inputs, 1, size**2)
            inputs = outputs
    yield Convolution(classes, inputs, 1, 1)


def _dense(shape: Shape, classes: int, channels: int, size: int, growth: int) -> Iterator[Convolution]:
    inputs = 2 * growth
    yield Convolution(inputs, channels, 3, size**2)
    for stage, count in enumerate(shape.blocks):
        for _ in range(count):
            yield Convolution(4 * growth, inputs, 1, size**2)
            yield Convolution(growth, 4 * growth, 3, size**2)
            inputs += growth
        if stage < len(shape.blocks) - 1:
            yield Convolution(inputs // 2, inputs, 1, size**2)
            inputs, size = inputs // 2, size // 2
    yield Convolution(classes, inputs, 1, 1)
