"""Masks of one block from its weights and statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from .criteria.criterion import Criterion
from .errors import FreelunchError
from .patterns import Pattern
from .statistics import Statistics


@torch.no_grad()
def prune_matrix(name: str, weight: Tensor, statistics: Statistics, criterion: Criterion, pattern: Pattern) -> Tensor:
    """Boolean mask ``[rows, columns]`` of a matrix, True = kept, with exactly the pattern's number of pruned weights.

    Raises:
        FreelunchError: the pattern does not fit the matrix, its scores are not finite, or the count came out wrong;
            names the matrix.
    """
    rows, columns = weight.shape
    pattern.check(rows, columns, name)
    scores = criterion.score(weight.float(), statistics)
    if not bool(scores.isfinite().all()):
        raise FreelunchError(f"{name}: {type(criterion).__name__} scores contain NaN or infinity")
    mask = pattern.mask(scores)
    check_count(name, mask, pattern)
    return mask


def check_count(name: str, mask: Tensor, pattern: Pattern) -> None:
    """Raise unless a mask prunes exactly what its pattern says: in all, and in every row or group."""
    rows, columns = mask.shape
    found, wanted = mask.numel() - int(mask.sum()), pattern.pruned(rows, columns)
    if found != wanted or not torch.equal(pattern.mask(mask.float()), mask):
        raise FreelunchError(f"{name}: {found} weights pruned, {pattern} asks for {wanted} spread as it says")
