"""When training validates, and at which learning rate it takes its steps. Imports no torch: the plan counts by it.

``learning_rate: auto`` finds the rate of one window by short trials that are judged on validation crops. The paper
trains 24 runs, 8 rates times 3 lengths, and keeps the best. A search per window needs no second run, and gives every
window its own rate: those of attention and MLP, of early and late blocks, differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable

VALIDATION_TOKENS = {"reconstruct": 2048, "retrain": 1024, "pretrain": 4096}
"""Tokens per batch of a validation pass, which needs no room for gradients, by what is trained."""
START = -6
"""Exponent of the first rate that is tried, in half decades: 1e-3."""
LOWEST, HIGHEST = -16, -2
"""Of any rate: 1e-8 and 1e-1."""
SHARE = 0.25
"""Of a run's steps that a trial takes, within :data:`FEWEST` and :data:`MOST`: shorter ones favour rates that are too
high, longer ones cost more than they tell.
"""
FEWEST, MOST = 4, 32


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


def trial_steps(total: int) -> int:
    """Steps of a trial of a run of ``total``."""
    return min(total, max(FEWEST, min(MOST, math.ceil(SHARE * total))))


def rate_of(exponent: int) -> float:
    """Rate of an exponent, in half decades, to three digits: 1e-3, 3.16e-4, 1e-4, …"""
    return float(f"{10 ** (exponent / 2):.3g}")


def search_rate(trial: Callable[[float], float]) -> dict[float, float]:
    """Losses of the rates that were tried; walks from :data:`START` to the better neighbour until both are worse.

    Args:
        trial: validation loss after a short training at a rate; infinite where it diverged.
    """
    losses: dict[int, float] = {}

    def loss(exponent: int) -> float:
        if exponent not in losses:
            losses[exponent] = trial(rate_of(exponent)) if LOWEST <= exponent <= HIGHEST else math.inf
        return losses[exponent]

    best = START
    while loss(best) == math.inf and best > LOWEST:
        best -= 1
    while True:
        # the lower neighbour first: of two that are as good, the lower rate is the safer one
        better = [each for each in (best - 1, best + 1) if loss(each) < loss(best)]
        if not better and loss(best + 1) == loss(best) < math.inf:
            better = [best + 1]  # steps so small that rounding takes them back: what they would do is not seen yet
        if not better:
            return {rate_of(each): value for each, value in sorted(losses.items()) if LOWEST <= each <= HIGHEST}
        best = min(better, key=loss)


def best_rate(tried: dict[float, float]) -> float:
    """The rate of the lowest loss; the lower one of equals."""
    return min(tried, key=lambda each: (tried[each], each))
