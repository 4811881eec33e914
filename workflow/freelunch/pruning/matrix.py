"""One weight matrix with what is known of its inputs: all that criteria, refinements and allocations look at."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of the inputs ``x`` of one matrix, over ``tokens`` input vectors."""

    tokens: int
    sums: Tensor  # [columns] float64
    squared_norms: Tensor  # [columns] float64, the sum of each input's square, ||X_j||^2
    gram: Tensor | None = None  # [columns, columns] float32, X^T X, where it was asked for
    factors: dict[float, Tensor] = field(default_factory=dict, init=False, repr=False)
    """Of the inverse of ``gram``, by damping; see ``hessian.inverse_factor``."""

    @property
    def means(self) -> Tensor:
        """``[columns]`` float64."""
        return self.sums / self.tokens

    @property
    def variances(self) -> Tensor:
        """``[columns]`` float64, sample variance over tokens."""
        centred = self.squared_norms - self.sums.square() / self.tokens
        # what is left of equal numbers is rounding
        centred = torch.where(centred <= _ROUNDING * self.squared_norms, 0.0, centred)
        return centred / max(1, self.tokens - 1)


@dataclass(frozen=True, eq=False)
class Matrix:
    """A linear layer ``y = W x + b`` by its full name, and the statistics of ``x``."""

    name: str
    weight: Tensor  # [rows = outputs, columns = inputs] float32, dense
    inputs: Statistics
    bias: Tensor | None = None  # [rows] float32, if the layer has one
    seed: int = 0  # of the run

    def generator(self) -> Generator:
        """Random numbers of this matrix."""
        return named_generator(self.seed, self.name)


@dataclass(frozen=True, eq=False)
class Pruned:
    """A pruned matrix."""

    mask: Tensor  # [rows, columns], True = kept
    weight: Tensor  # [rows, columns] float32; what it holds where pruned does not matter
    bias: Tensor | None  # [rows] float32, if the layer has one by now


@dataclass(frozen=True)
class Matrices:
    """All prunable matrices of a network, each loaded when it is looked at."""

    shapes: dict[str, tuple[int, ...]]  # of every weight by name, in the order of the network
    blocks: dict[str, int]  # index of the block that each lies in
    load: Callable[[str], Matrix]

    @property
    def sizes(self) -> dict[str, int]:
        """Number of weights by name."""
        return {name: math.prod(shape) for name, shape in self.shapes.items()}

    def __iter__(self) -> Iterator[Matrix]:
        return (self.load(name) for name in self.shapes)


def named_generator(seed: int, name: str) -> Generator:
    """Random numbers of a seed and a name: on the CPU, so that they are the same on every device."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def finite(tensor: Tensor) -> bool:
    """Whether nothing in a tensor is NaN or infinite: by its sum, and one by one only where that is not finite."""
    dtype = torch.float32 if tensor.dtype == torch.float16 else None  # whose sums would be too large too often
    return bool(tensor.sum(dtype=dtype).isfinite()) or bool(tensor.isfinite().all())
