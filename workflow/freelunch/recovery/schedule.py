"""When things happen in training: learning rate, order of batches, validation."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def learning_rate(peak: float, step: int, total: int, warmup: float, schedule: str = "linear") -> float:
    """Rate of ``step`` (1 .. total): linear up to ``peak`` over the first ``int(warmup * total)`` steps.

    Then, by ``schedule``: ``linear`` to 0, ``cosine`` to 0 along half a wave, ``constant``.
    """
    rising = int(warmup * total)
    if step <= rising:
        return peak * step / rising
    left = (total - step + 1) / (total - rising)
    if schedule == "linear":
        return peak * left
    return peak * (1 - math.cos(math.pi * left)) / 2 if schedule == "cosine" else peak


def batch_order(count: int, batch_size: int, epochs: int, seed: int, window: int) -> list[Tensor]:
    """Indices of the sequences of every step: each epoch a fresh permutation, the remainder kept as a smaller batch.

    The order depends on the seed and the window alone, so windows may be trained in any order, in any process.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + window)
    order: list[Tensor] = []
    for _ in range(epochs):
        order.extend(torch.randperm(count, generator=generator).split(batch_size))
    return order


def validation_steps(total: int, epochs: int, at_least: int = 3) -> list[int]:
    """Steps to validate at: evenly spread, once an epoch, at least ``at_least`` times, the last one included."""
    times = min(total, max(epochs, at_least))
    return [round(total * i / times) for i in range(1, times + 1)]
