"""How far criteria are apart before and after recovery: ratios of perplexities, which models of any tokenizer have."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from pandas import DataFrame

from freelunch.reporting import findings, labels
from freelunch.reporting.comparisons import Group
from freelunch.reporting.estimates import Estimate, estimate
from freelunch.reporting.style import printed


class Spread(NamedTuple):
    """The worst and the best of some criteria, each with its perplexity."""

    worst: tuple[str, Estimate]
    best: tuple[str, Estimate]

    @property
    def ratio(self) -> float:
        """Perplexity of the worst over that of the best; not finite where one of them is not."""
        values = self.worst[1].value, self.best[1].value
        return values[0] / values[1] if all(map(math.isfinite, values)) else math.inf

    def told(self) -> str:
        """``1.05 (Magnitude 31.5 over Wanda 30.0)``."""
        pairs = [f"{labels.value('criterion', name)} {findings.shown(cell)}" for name, cell in self]
        return f"{printed(self.ratio)} ({' over '.join(pairs)})"


def spread(group: Group) -> tuple[Spread, Spread] | None:
    """Of the criteria that were measured before and after recovery the extremes of both; None if there are not two."""
    before = {value: group.baseline(value) for value in group.values}
    after = {value: group.estimate(value) for value in group.values}
    common = [value for value in group.values if before[value] is not None and after[value] is not None]
    if len(common) < 2:
        return None
    sides = ([(value, side[value]) for value in common] for side in (before, after))
    first, second = (_extremes([(value, cell) for value, cell in side if cell is not None]) for side in sides)
    return first, second


def _extremes(cells: list[tuple[str, Estimate]]) -> Spread:
    size = [cell.value if math.isfinite(cell.value) else math.inf for _, cell in cells]
    return Spread(cells[int(np.argmax(size))], cells[int(np.argmin(size))])


def gaps(runs: DataFrame) -> dict[str, Estimate]:
    """By criterion the logarithm of its perplexity over the best criterion's: the mean over seeds, in nats.

    The best is the one with the lowest mean logarithm, so no gap is negative. Seeds are paired: the error is that of
    the differences, and missing with one seed.

    Args:
        runs: one row per criterion and seed, perplexity in ``value``; all criteria at the same seeds.
    """
    logs = runs.assign(log=np.log(runs["value"].to_numpy(float)), seed=runs["seed"].fillna(-1).astype(int))
    table = logs.pivot(index="seed", columns="criterion", values="log")
    names = [str(name) for name in table.columns]
    means = {name: float(table[name].mean(skipna=False)) for name in names}
    finite = [name for name in names if math.isfinite(means[name])]
    if not finite:
        return {name: Estimate(math.nan, math.nan, len(table)) for name in names}
    best = min(finite, key=lambda name: means[name])
    found = {name: estimate(list(table[name] - table[best])) for name in names}
    # the best is no distance from itself in any seed: "± 0" would only be noise
    return found | {best: Estimate(0.0, math.nan, len(table))}
