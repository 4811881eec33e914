"""The claims of the second paper, which is about convolutional networks."""

from __future__ import annotations

from typing import ClassVar

from freelunch.reporting import claims, labels
from freelunch.reporting.accuracies import (
    MATCHED,
    PAIR,
    accuracies,
    clear,
    difference,
    percent,
    present,
    signed,
    told,
)
from freelunch.reporting.estimates import Estimate
from freelunch.reporting.style import printed
from freelunch.reporting.transitions import Point, transitions
from freelunch.reporting.verdicts.verdict import FAILS, HOLDS, PARTLY, Case, Claim, Evidence


class Allocation(Claim):
    """ERK against LAMP after the same repair."""

    name: ClassVar[str] = "allocation"
    source: ClassVar[str] = claims.SECOND
    needs: ClassVar[str] = "classifiers that were pruned with ERK and with LAMP and repaired"
    rule: ClassVar[str] = (
        "For each network, ERK less LAMP in accuracy after the shrunk repair, at the same seeds. A difference counts "
        "if it is at least one point and more than two standard errors. The claim holds if each of the two is ahead at "
        "some sparsity, partly if only one ever is, and does not hold if no difference counts. Whether the better one "
        "depends on the network and the data is seen by comparing cases."
    )

    def cases(self, evidence: Evidence) -> list[Case]:
        frame = accuracies(evidence.rows, self.view)
        cases = []
        for model in present(frame, "model"):
            found: list[tuple[str, Estimate]] = []
            for sparsity in present(frame[frame["model"] == model], "sparsity"):
                at = {"model": model, "sparsity": sparsity, "backend": MATCHED}
                gap = difference(frame, *({**at, "allocation": allocation} for allocation in PAIR))
                if gap is not None:
                    found.append((percent(sparsity), gap))
            if found:
                signs = {gap.value > 0 for _, gap in found if clear(gap)}
                outcome = HOLDS if len(signs) == 2 else PARTLY if signs else FAILS
                numbers = f"ERK less LAMP in points: {told(found)}"
                cases.append(Case(model, outcome, numbers, min(gap.runs for _, gap in found)))
        return cases


class Transition(Claim):
    """Recalibration alone against repair."""

    name: ClassVar[str] = "transition"
    source: ClassVar[str] = claims.SECOND
    needs: ClassVar[str] = "classifiers that were recalibrated and repaired"
    rule: ClassVar[str] = (
        "For each network and allocation, accuracy after the best of three repairs less that after recalibration "
        "alone, at the same seeds, where recalibration leaves it more than a point below the dense network. The claim "
        "holds if at some sparsity repair gains at least one point and more than two standard errors; partly if "
        "wherever it does, recalibration with an epsilon of 1e-12 gains at least half as much or was not measured, so "
        "that what is repaired may be the epsilon; it does not hold if repair gains so much nowhere."
    )

    def cases(self, evidence: Evidence) -> list[Case]:
        groups: dict[tuple[str, str], list[Point]] = {}
        for point in transitions(evidence.rows, self.view):
            groups.setdefault((point.model, point.allocation), []).append(point)
        return [_case(model, allocation, points) for (model, allocation), points in groups.items()]


def _case(model: str, allocation: str, points: list[Point]) -> Case:
    found = [point for point in points if point.recovers]
    own = [point for point in found if point.control is not None and not point.escapes]
    outcome = HOLDS if own else PARTLY if found else FAILS
    best = max(found or points, key=lambda point: point.gain.value)
    parts = [f"{percent(best.sparsity)} gains {signed(best.gain)} points (repair {best.repair})"]
    parts.append("the smaller epsilon " + ("was not measured" if best.control is None else signed(best.control)))
    times = f"{printed(best.variance / best.epsilon)} × epsilon"
    parts.append(f"the least variance that a norm reads is {best.variance:.2g}, {times}")
    where = f"{model}, {labels.value('allocation', allocation)}"
    return Case(where, outcome, "; ".join(parts), min(point.seeds for point in points))
