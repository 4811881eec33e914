"""Base + overlay: a pruned or recovered model is the dense checkpoint, bit-packed masks, and the tensors that changed.

A dense model is never copied; sources of tensors are stacked instead, and read lazily, one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from freelunch.errors import FreelunchError


class TensorSource(Protocol):
    """Named tensors that are read when asked for."""

    def __contains__(self, name: object) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading its values."""

    def load(self, name: str) -> Tensor:
        """The tensor on the CPU; callers must not write to it."""


class SafetensorsFiles:
    """The tensors of some safetensors files, read one by one: what is no longer held takes no memory.

    Raises:
        FreelunchError: a file is no readable safetensors file, or two files hold a tensor of the same name.
    """

    def __init__(self, paths: Iterable[Path] = ()) -> None:
        self._paths: list[Path] = []
        self._file_of: dict[str, Path] = {}
        for path in paths:
            self.add(path)

    def add(self, path: Path) -> None:
        """Take in the tensors of one more file; once, however often it is added."""
        if path in self._paths:
            return
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
        except Exception as error:
            raise FreelunchError(f"{path}: cannot be read as safetensors: {error}") from None
        for name in names:
            if name in self._file_of:
                raise FreelunchError(f"{path}: holds {name}, which {self._file_of[name]} holds as well")
            self._file_of[name] = path
        self._paths.append(path)

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    @property
    def names(self) -> list[str]:
        """All its tensors."""
        return list(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        with safe_open(self._path(name), framework="pt") as file:
            return tuple(file.get_slice(name).get_shape())

    def load(self, name: str) -> Tensor:
        # copied out of the mapping, whose pages would count as memory for as long as the tensor lives
        with safe_open(self._path(name), framework="pt") as file:
            tensor: Tensor = file.get_tensor(name).clone()
        return tensor

    def _path(self, name: str) -> Path:
        if name not in self._file_of:
            files = ", ".join(str(path) for path in self._paths) or "no file"
            raise FreelunchError(f"no tensor {name} in {files}")
        return self._file_of[name]


@dataclass(frozen=True)
class InMemory:
    """Tensors held in a mapping."""

    tensors: Mapping[str, Tensor]

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def load(self, name: str) -> Tensor:
        return self.tensors[name]


@dataclass(frozen=True)
class Masked:
    """A source whose masked tensors read as zero where pruned."""

    base: TensorSource
    masks: TensorSource

    def __contains__(self, name: object) -> bool:
        return name in self.base

    def shape(self, name: str) -> tuple[int, ...]:
        return self.base.shape(name)

    def load(self, name: str) -> Tensor:
        tensor, mask = self.base.load(name), self.mask(name)
        return tensor if mask is None else tensor.masked_fill(~mask, 0)

    def mask(self, name: str) -> Tensor | None:
        """Boolean mask of a tensor, True = kept; None if it is not pruned."""
        return unpack(self.masks.load(name), self.shape(name)[1]) if name in self.masks else None


@dataclass(frozen=True)
class Replaced:
    """A source some of whose tensors are replaced by others, or that has some besides."""

    base: TensorSource
    changed: TensorSource

    def __contains__(self, name: object) -> bool:
        return name in self.changed or name in self.base

    def shape(self, name: str) -> tuple[int, ...]:
        return (self.changed if name in self.changed else self.base).shape(name)

    def load(self, name: str) -> Tensor:
        return (self.changed if name in self.changed else self.base).load(name)


def pack(mask: Tensor) -> Tensor:
    """Pack a boolean ``[rows, columns]`` mask into ``[rows, ceil(columns / 8)]`` bytes, first column highest."""
    return torch.from_numpy(np.packbits(mask.bool().numpy(), axis=1))


def unpack(packed: Tensor, columns: int) -> Tensor:
    """Inverse of :func:`pack` for a mask of ``columns`` columns."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=1, count=columns)).bool()
