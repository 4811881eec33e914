"""What an allocation is, and how its real numbers become whole weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from freelunch.prune.matrix import Matrices
from freelunch.prune.patterns import Pattern


@dataclass(frozen=True)
class Allocation:
    """Says how many weights each matrix should lose. Fields are settings, written ``name(field=value)``."""

    by_block: ClassVar[bool] = False
    """Whether all matrices of a block get the same sparsity, so that structured patterns can follow it."""

    needs_gram: ClassVar[bool] = False
    """Whether it looks at Gram matrices of the dense model's inputs."""

    def targets(self, matrices: Matrices, pruned: float) -> Mapping[str, float]:
        """Weights to prune of every matrix, ``pruned`` in all; need not be whole numbers, nor add up exactly."""
        raise NotImplementedError

    def check(self, blocks: int, pattern: Pattern) -> None:
        """Raise if it does not go with a pattern in a network of so many blocks; before anything is loaded."""


def capped(scores: Mapping[str, float], sizes: Mapping[str, int], kept: float, cap: float) -> dict[str, float]:
    """Weights that stay of every matrix, ``kept`` in all: in proportion to scores, at most ``cap`` of its size.

    The matrix that overflows most is filled first, and the rest is redistributed over the others.
    """
    found: dict[str, float] = {}
    open_, left = dict(scores), kept
    while open_:
        total = sum(open_.values())
        shares = {name: left * score / total if total > 0 else left / len(open_) for name, score in open_.items()}
        worst = max(open_, key=lambda name: shares[name] / sizes[name])
        if shares[worst] <= cap * sizes[worst]:
            found |= shares
            break
        found[worst] = cap * sizes[worst]
        left -= found[worst]
        del open_[worst]
    return found


def within(targets: Mapping[str, float], limits: Mapping[str, int], total: float) -> dict[str, float]:
    """Targets between 0 and their limits, ``total`` in all: what the limits cut off is spread over the room left."""
    found: dict[str, float] = {name: float(min(max(target, 0.0), limits[name])) for name, target in targets.items()}
    lack = total - sum(found.values())
    room = {name: limits[name] - value if lack > 0 else value for name, value in found.items()}
    share = lack / sum(room.values()) if sum(room.values()) > 0 else 0.0
    return {name: value + min(share, 1.0) * room[name] for name, value in found.items()}


def apportion(
    targets: Mapping[str, float], sizes: Mapping[str, int], total: int, steps: Mapping[str, int], keep: bool = False
) -> dict[str, int]:
    """Whole numbers of weights to prune near ``targets``: with steps of one, exactly ``total`` in all.

    Every number is a multiple of its matrix' step, at most its size (with ``keep``, a step less), and within a step of
    its target. Largest remainders go up first. With larger steps (N:M) the sum may miss ``total`` by part of a step.
    """
    limits = {name: sizes[name] - (steps[name] if keep else 0) for name in targets}
    wanted = within(targets, limits, total)
    # a hair is added, so that 2.9999999 counts as 3
    counts = {name: math.floor(found / steps[name] + 1e-9) * steps[name] for name, found in wanted.items()}
    left = total - sum(counts.values())
    order = sorted(counts, key=lambda name: (counts[name] - wanted[name]) / steps[name])
    before = math.inf
    while abs(left) < before:  # large steps may go too far, and small ones back
        before = abs(left)
        for name in order if left > 0 else reversed(order):
            step = steps[name] if left > 0 else -steps[name]
            near = abs(counts[name] + step - wanted[name]) <= steps[name] + 1e-6
            if near and 0 <= counts[name] + step <= limits[name] and abs(left - step) < abs(left):
                counts[name] += step
                left -= step
    return counts
