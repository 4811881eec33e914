"""Test accuracy of classifiers by allocation and backend."""

from __future__ import annotations

from pandas import DataFrame

from freelunch.reporting import labels
from freelunch.reporting.accuracies import accuracies, mean, percent, present
from freelunch.reporting.estimates import suite
from freelunch.reporting.table import Column, Contest, Line, Table

_LEVELS = ("model", "sparsity", "allocation")


def build(rows: DataFrame) -> Table:
    """One line per network, sparsity and allocation, one column per backend; first the dense network, which has one.

    The best allocation of every network, sparsity and backend is bold.

    Raises:
        FreelunchError: no pruned classifier was measured.
    """
    frame = accuracies(rows, "table accuracy")
    pruned = frame[frame["criterion"] != "dense"]
    backends = present(frame, "backend")
    lines: list[Line] = []
    contests: list[Contest] = []
    for model in present(frame, "model"):
        dense = mean(frame, model=model, criterion="dense")
        lines.append(((model, "dense", None), (dense, *[None] * (len(backends) - 1))))
        for sparsity in present(pruned[pruned["model"] == model], "sparsity"):
            at = pruned[(pruned["model"] == model) & (pruned["sparsity"] == sparsity)]
            first = len(lines)
            for allocation in present(at, "allocation"):
                cells = tuple(mean(at, allocation=allocation, backend=backend) for backend in backends)
                lines.append(((model, percent(sparsity), allocation), cells))
            rivals = range(first, len(lines))
            if len(rivals) > 1:
                places = [tuple((line, column) for line in rivals) for column in range(len(backends))]
                contests += [Contest(found, highest=True) for found in places]
    columns = [Column(backend, f"{labels.value('backend', backend)} (%)") for backend in backends]
    title = "Test accuracy in percent; higher is better."
    return Table("accuracy", suite(rows), title, _LEVELS, tuple(columns), lines, contests=tuple(contests),
                 bold="the best allocation of every network, sparsity and backend")  # fmt: skip
