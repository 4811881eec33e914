"""``learning_rate: auto``: the rate of one window, found by short trials that are judged on validation crops.

The paper trains 24 runs, 8 rates times 3 lengths, and keeps the best. A search per window needs no second run, and
gives every window its own rate: those of attention and MLP, of early and late blocks, differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable

START = -6
"""Exponent of the first rate that is tried, in half decades: 1e-3."""
LOWEST, HIGHEST = -16, -2
"""Of any rate: 1e-8 and 1e-1."""
SHARE = 0.25
"""Of a run's steps that a trial takes, within :data:`FEWEST` and :data:`MOST`: shorter ones favour rates that are too
high, longer ones cost more than they tell.
"""
FEWEST, MOST = 4, 32


def trial_steps(total: int) -> int:
    """Steps of a trial of a run of ``total``."""
    return min(total, max(FEWEST, min(MOST, math.ceil(SHARE * total))))


def rate(exponent: int) -> float:
    """Rate of an exponent, in half decades, to three digits: 1e-3, 3.16e-4, 1e-4, …"""
    return float(f"{10 ** (exponent / 2):.3g}")


def search(trial: Callable[[float], float]) -> dict[float, float]:
    """Losses of the rates that were tried; walks from :data:`START` to the better neighbour until both are worse.

    Args:
        trial: validation loss after a short training at a rate; infinite where it diverged.
    """
    found: dict[int, float] = {}

    def loss(exponent: int) -> float:
        if exponent not in found:
            allowed = LOWEST <= exponent <= HIGHEST
            found[exponent] = trial(rate(exponent)) if allowed else math.inf
        return found[exponent]

    best = START
    while loss(best) == math.inf and best > LOWEST:
        best -= 1
    while True:
        # the lower neighbour first: of two that are as good, the lower rate is the safer one
        better = [each for each in (best - 1, best + 1) if loss(each) < loss(best)]
        if not better and loss(best + 1) == loss(best) < math.inf:
            better = [best + 1]  # steps so small that rounding takes them back: what they would do is not seen yet
        if not better:
            return {rate(each): value for each, value in sorted(found.items()) if LOWEST <= each <= HIGHEST}
        best = min(better, key=loss)


def lowest(tried: dict[float, float]) -> float:
    """The rate of the lowest loss; the lower one of equals."""
    return min(tried, key=lambda each: (tried[each], each))
