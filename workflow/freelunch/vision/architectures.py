"""Shapes of classifiers: what the plan must know of them. Imports no torch.

ResNets (He et al. 2016, arXiv 1512.03385; shortcuts are 1×1 convolutions where the shape changes) and DenseNets (Huang
et al. 2017, arXiv 1608.06993), with the stems that images of 32 pixels want: no pooling, no stride before the first
stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from freelunch.errors import FreelunchError, suggest

TEST_BATCH = 100
"""Images that are measured at a time."""


class Shape(NamedTuple):
    """Kind and number of the blocks of every stage; ``width`` is that of the first stage, or a DenseNet's growth."""

    kind: Literal["basic", "bottleneck", "dense"]
    blocks: tuple[int, ...]
    width: int

    @property
    def expansion(self) -> int:
        """Output channels of a residual block, per channel of its 3×3 convolutions."""
        return 4 if self.kind == "bottleneck" else 1


ARCHITECTURES = {
    "resnet18": Shape("basic", (2, 2, 2, 2), 64),
    "resnet34": Shape("basic", (3, 4, 6, 3), 64),
    "resnet50": Shape("bottleneck", (3, 4, 6, 3), 64),
    "densenet121": Shape("dense", (6, 12, 24, 16), 32),
}


def check_architecture(name: str) -> str:
    """The name; a :exc:`FreelunchError` if there is no such architecture."""
    if name not in ARCHITECTURES:
        raise FreelunchError(f"there is no network {name!r}; {suggest(name, ARCHITECTURES)}")
    return name


class Convolution(NamedTuple):
    """Channels of a convolution, the side of its kernel, and the positions at which it is applied.

    None has a bias. The head is one of side 1 at a single position.
    """

    outputs: int
    inputs: int
    side: int
    positions: int

    @property
    def weights(self) -> int:
        return self.outputs * self.inputs * self.side**2


def convolutions(architecture: str, classes: int, channels: int, size: int, width: int) -> Iterator[Convolution]:
    """All convolutions and the head of a network on images of a size, in the order of definition."""
    shape = ARCHITECTURES[architecture]
    inputs = 2 * width if shape.kind == "dense" else width
    yield Convolution(inputs, channels, 3, size**2)
    for stage, count in enumerate(shape.blocks):
        if shape.kind == "dense":
            if stage:
                yield Convolution(inputs // 2, inputs, 1, size**2)
                inputs, size = inputs // 2, size // 2
            for _ in range(count):
                yield Convolution(4 * width, inputs, 1, size**2)
                yield Convolution(width, 4 * width, 3, size**2)
                inputs += width
            continue
        inner, outputs = width * 2**stage, width * 2**stage * shape.expansion
        for index in range(count):
            is_strided = bool(stage) and not index
            before, size = size, -(-size // 2) if is_strided else size
            if shape.kind == "basic":
                yield Convolution(inner, inputs, 3, size**2)
                yield Convolution(inner, inner, 3, size**2)
            else:
                yield Convolution(inner, inputs, 1, before**2)
                yield Convolution(inner, inner, 3, size**2)
                yield Convolution(outputs, inner, 1, size**2)
            if is_strided or inputs != outputs:
                yield Convolution(outputs, inputs, 1, size**2)
            inputs = outputs
    yield Convolution(classes, inputs, 1, 1)
