"""What a pruned model would take on disk in the ways that there are to store its zeros.

An export is dense: its zeros take as much room as any weight. The other numbers are of formats that runtimes and
kernels have, and are computed, not written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_COUNTS = torch.tensor([bin(byte).count("1") for byte in range(256)])


@dataclass(frozen=True)
class Sizes:
    """Bytes of the tensors of a model, heads of files left out.

    Attributes:
        dense: with zeros as weights, which is what an export is.
        bitmask: the kept values of every pruned matrix, and one bit per weight that says which they are (rows are
            filled up to whole bytes).
        two_four: of 2:4 matrices the kept values and two bits for each, its place in its group of four, as sparse
            tensor cores read them (Mishra et al. 2021, arXiv:2104.08378); None if a pruned matrix is not 2:4.
    """

    dense: int
    bitmask: int
    two_four: int | None

    def as_dict(self) -> dict[str, int | None]:
        """For a manifest."""
        return {"dense_bytes": self.dense, "bitmask_bytes": self.bitmask, "two_four_bytes": self.two_four}


def sizes(skeleton: Mapping[str, Tensor], masks: Mapping[str, Tensor], two_four: bool) -> Sizes:
    """Sizes of a model.

    Args:
        skeleton: its tensors, of any device.
        masks: packed masks ``[rows, ceil(columns / 8)]`` of those that are pruned.
        two_four: whether the masks keep two of every four inputs.
    """
    dense = sum(tensor.nbytes for tensor in skeleton.values())
    bitmask = halves = dense
    for name, packed in masks.items():
        tensor, kept = skeleton[name], count(packed)
        values = kept * tensor.element_size()
        bitmask += values + packed.numel() - tensor.nbytes
        two_four = two_four and 2 * kept == tensor.numel()
        halves += values + kept // 4 - tensor.nbytes
    return Sizes(dense, bitmask, halves if two_four else None)


def count(packed: Tensor) -> int:
    """Weights that a packed mask keeps."""
    return int(_COUNTS[packed.to(torch.int64)].sum())
