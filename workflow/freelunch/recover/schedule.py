"""When things happen in training: learning rate and validation. Imports no torch: the plan counts by it."""

from __future__ import annotations

import math

VALIDATION_TOKENS = {"reconstruct": 2048, "retrain": 1024, "pretrain": 4096}
"""Tokens per batch of a validation pass, which needs no room for gradients, by what is trained."""


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


def validation_steps(total: int, epochs: int, at_least: int = 3) -> list[int]:
    """Steps to validate at: evenly spread, once an epoch, at least ``at_least`` times, the last one included."""
    times = min(total, max(epochs, at_least))
    return [round(total * i / times) for i in range(1, times + 1)]
