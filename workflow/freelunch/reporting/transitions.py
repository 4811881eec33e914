"""The repair-sensitive transition: where recalibration alone fails and a repair by activation statistics does not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pandas import DataFrame

from freelunch.errors import FreelunchError
from freelunch.reporting.accuracies import (
    CONTROL,
    RECALIBRATED,
    REPAIRS,
    accuracies,
    clear,
    difference,
    mean,
    present,
)
from freelunch.reporting.estimates import Estimate, of, suite


@dataclass(frozen=True)
class Point:
    """A network, pruned in one way.

    Attributes:
        model: the network.
        allocation: how sparsity was spread.
        sparsity: of all its layers together.
        recalibrated: accuracy after recalibration alone, in percent; None if it was not measured.
        dense: that of the dense network.
        repair: the backend among the repairs that gains most over it.
        gain: its accuracy less that of recalibration alone.
        control: the gain of recalibration with a much smaller epsilon.
        variance: the least variance of any channel that a norm reads, over all seeds.
        epsilon: of the norms.
        faint: share of the channels of a norm that vary by less than epsilon, of the norm where it is largest.
        seeds: over which the gain is a mean.
    """

    model: str
    allocation: str
    sparsity: float
    recalibrated: Estimate | None
    dense: Estimate | None
    repair: str
    gain: Estimate
    control: Estimate | None
    variance: float
    epsilon: float
    faint: float
    seeds: int

    @property
    def recovers(self) -> bool:
        """Whether the repair is clearly better where recalibration leaves more than a point to be gained."""
        lost = self.recalibrated is None or self.dense is None or self.dense.value - self.recalibrated.value > 1
        return lost and self.gain.value > 0 and clear(self.gain)

    @property
    def escapes(self) -> bool:
        """Whether the smaller epsilon gains at least half as much: then the repair is an escape from epsilon.

        Without a control nothing is known of it.
        """
        return self.control is not None and self.control.value >= 0.5 * self.gain.value


def transitions(rows: DataFrame, view: str) -> list[Point]:
    """All pruned networks that were recalibrated and repaired, by network, allocation and sparsity.

    Raises:
        FreelunchError: no classifier was recalibrated and repaired, or as :func:`accuracies`.
    """
    frame = accuracies(rows, view)
    norms = rows[
        rows["metric"].isin(["least_variance", "epsilon", "faint_channels"]) & (rows["backend"] == RECALIBRATED)
    ]
    points = []
    for model in present(frame, "model"):
        of_model = frame[frame["model"] == model]
        for allocation in present(of_model, "allocation"):
            for sparsity in present(of(of_model, ["allocation"], [allocation]), "sparsity"):
                at = {"model": model, "allocation": allocation, "sparsity": sparsity}
                found = _point(frame, norms, at)
                if found is not None:
                    points.append(found)
    if not points:
        raise FreelunchError(
            f"{view} needs classifiers that were recalibrated and repaired; suite {suite(rows)} has none"
        )
    return points


def _point(frame: DataFrame, norms: DataFrame, at: dict[str, Any]) -> Point | None:
    plain = {**at, "backend": RECALIBRATED}
    gains = {repair: difference(frame, {**at, "backend": repair}, plain) for repair in REPAIRS}
    known = {repair: gain for repair, gain in gains.items() if gain is not None}
    if not known:
        return None
    best = max(known, key=lambda repair: known[repair].value)
    seen = of(frame, list(plain), list(plain.values()))
    there = norms[norms["run"].isin(seen["run"])].groupby("metric")["value"].agg(["min", "max"])
    least, most = there["min"], there["max"]
    return Point(
        **at,
        recalibrated=mean(frame, **plain),
        dense=mean(frame, model=at["model"], criterion="dense"),
        repair=best,
        gain=known[best],
        control=difference(frame, {**at, "backend": CONTROL}, plain),
        variance=float(least.get("least_variance", math.nan)),
        epsilon=float(least.get("epsilon", math.nan)),
        faint=float(most.get("faint_channels", math.nan)),
        seeds=known[best].runs,
    )
