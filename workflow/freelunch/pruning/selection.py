"""Dropping the lowest scores: exact counts, ties by position, over one matrix or a whole network."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

_BINS = 1 << 16
_CHUNK = 1 << 22  # scores per histogram step: bounds the memory of what is computed from them
_NETWORK = 8  # groups up to this size are sorted all at once


def drop_lowest(scores: Tensor, counts: Tensor | int) -> Tensor:
    """Boolean mask of ``scores`` ``[groups, size]`` that is False at the ``counts`` lowest of each group.

    Among equal scores the earlier goes first. Thresholds are found first, ties are looked at only where there are
    some; ``topk`` promises neither order nor speed.
    """
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if isinstance(counts, int) and (counts == 0 or scores.shape[1] <= _NETWORK):
        return _drop_lowest_of_few(scores, counts)
    wanted = counts if isinstance(counts, Tensor) else torch.full((len(scores),), counts, device=scores.device)
    threshold = _thresholds(scores, wanted)
    mask = scores > threshold
    return _with_ties(scores, threshold, mask, dropped(mask) - wanted)


def dropped(mask: Tensor) -> Tensor:
    """How many entries of each row of a mask are False."""
    # bytes are summed with vector instructions, booleans are not
    return mask.shape[1] - mask.contiguous().view(torch.uint8).sum(1, dtype=torch.int32)


def count_lowest(scores: Callable[[], Iterable[tuple[str, Tensor]]], count: int) -> dict[str, int]:
    """How many of the ``count`` lowest scores lie in each tensor; among equal scores, earlier tensors lose first.

    ``scores`` gives all tensors by name, twice, and they are never held together: a histogram of their upper 16 bits
    finds the bin of the threshold, one of the lower 16 bits within it the threshold itself.
    """
    upper = torch.zeros(_BINS, dtype=torch.long)
    for _, tensor in scores():
        for keys in _keys(tensor):
            upper += _histogram((keys >> 16) + _BINS // 2)
    if count > int(upper.sum()):
        raise ValueError(f"cannot drop {count} of {int(upper.sum())} scores")
    bin_ = min(int(torch.searchsorted(upper.cumsum(0), count, right=True)), _BINS - 1)
    left = count - int(upper[:bin_].sum())

    below: dict[str, int] = {}
    lower: dict[str, Tensor] = {}
    for name, tensor in scores():
        below[name] = 0
        found = torch.zeros(_BINS, dtype=torch.long)
        for keys in _keys(tensor):
            high = (keys >> 16) + _BINS // 2
            below[name] += int((high < bin_).sum())
            found += _histogram(keys[high == bin_] & (_BINS - 1))
        lower[name] = found.int()
    total = torch.stack(list(lower.values())).sum(0).cumsum(0)
    threshold = min(int(torch.searchsorted(total, left, right=True)), _BINS - 1)
    ties = left - (int(total[threshold - 1]) if threshold else 0)
    for name, histogram in lower.items():
        equal = min(ties, int(histogram[threshold]))
        below[name] += int(histogram[:threshold].sum()) + equal
        ties -= equal
    return below


def _drop_lowest_of_few(scores: Tensor, count: int) -> Tensor:
    """:func:`drop_lowest` of small groups: a sorting network, which is elementwise and runs over all groups at once."""
    columns = [column.contiguous() for column in scores.unbind(1)] if count else []
    for end in range(len(columns) - 1, 0, -1):
        for i in range(end):
            low, high = torch.minimum(columns[i], columns[i + 1]), torch.maximum(columns[i], columns[i + 1])
            columns[i], columns[i + 1] = low, high
    if count in (0, scores.shape[1]):
        return torch.full_like(scores, count == 0, dtype=torch.bool)
    threshold = columns[count - 1].unsqueeze(1)
    mask = scores > threshold
    if bool((columns[count] == columns[count - 1]).any()):
        mask = _with_ties(scores, threshold, mask, dropped(mask) - count)
    return mask


def _with_ties(scores: Tensor, threshold: Tensor, mask: Tensor, revive: Tensor) -> Tensor:
    """Keep the last ``revive`` of the scores of each group that were dropped only for being equal to the threshold."""
    tied = revive.nonzero().flatten()
    if len(tied):
        equal = scores[tied] == threshold[tied]
        last = equal.sum(1, keepdim=True) - revive[tied].unsqueeze(1)
        mask[tied] |= equal & (equal.cumsum(1) > last)
    return mask


def _thresholds(scores: Tensor, wanted: Tensor) -> Tensor:
    """The highest score that is dropped of each group ``[groups, 1]``; minus infinity where none is."""
    if scores.device.type != "cpu":
        ordered = scores.sort(dim=1).values
    elif int(wanted.min()) == int(wanted.max()) > 0:
        # numpy selects and sorts with vector instructions, torch does not
        count = int(wanted[0]) - 1
        return torch.from_numpy(np.partition(scores.numpy(), count, axis=1)[:, count : count + 1])
    else:
        ordered = torch.from_numpy(np.sort(scores.numpy(), axis=1))
    last = ordered.gather(1, (wanted.unsqueeze(1) - 1).clamp(min=0))
    return last.masked_fill(wanted.unsqueeze(1) == 0, -torch.inf)


def _keys(scores: Tensor) -> Iterable[Tensor]:
    """32-bit integers in the order of float32 scores; both zeros are equal."""
    flat = scores.flatten()
    for start in range(0, flat.numel(), _CHUNK):
        bits = (flat[start : start + _CHUNK].float() + 0.0).view(torch.int32)
        yield bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _histogram(bins: Tensor) -> Tensor:
    if bins.device.type == "cpu":
        return torch.from_numpy(np.bincount(bins.numpy(), minlength=_BINS))
    return torch.bincount(bins, minlength=_BINS).cpu()
