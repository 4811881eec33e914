"""One weight matrix with what is known of it: all that criteria, refinements and allocations look at."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from freelunch.prune.statistics import Statistics


@dataclass(frozen=True, eq=False)
class Matrix:
    """A linear layer ``y = W x + b``.

    Attributes:
        name: full name of the layer.
        weight: ``[rows = outputs, columns = inputs]`` float32, dense.
        inputs: statistics of ``x``.
        bias: ``[rows]`` float32, if the layer has one.
        seed: of the run.
    """

    name: str
    weight: Tensor
    inputs: Statistics
    bias: Tensor | None = None
    seed: int = 0

    def generator(self) -> Generator:
        """Random numbers of this matrix: on the CPU, so that they are the same on every device."""
        import torch

        digest = hashlib.sha256(f"{self.seed} {self.name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def finite(tensor: Tensor) -> bool:
    """Whether nothing in a tensor is NaN or infinite: by its sum, and one by one only where that is not finite."""
    import torch

    dtype = torch.float32 if tensor.dtype == torch.float16 else None  # whose sums would be too large too often
    return bool(tensor.sum(dtype=dtype).isfinite()) or bool(tensor.isfinite().all())


@dataclass(frozen=True)
class Matrices:
    """All prunable matrices of a network, each loaded when it is looked at.

    Attributes:
        shapes: shape of every weight by name, in the order of the network.
        blocks: index of the block that each lies in.
        load: gives one.
    """

    shapes: dict[str, tuple[int, ...]]
    blocks: dict[str, int]
    load: Callable[[str], Matrix]

    @property
    def sizes(self) -> dict[str, int]:
        """Number of weights by name."""
        return {name: math.prod(shape) for name, shape in self.shapes.items()}

    def __iter__(self) -> Iterator[Matrix]:
        return (self.load(name) for name in self.shapes)
