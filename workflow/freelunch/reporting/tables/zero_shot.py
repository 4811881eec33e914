"""Zero-shot accuracy by task: chance, dense, pruned and recovered."""

from __future__ import annotations

from typing import Any

from pandas import DataFrame

from freelunch.reporting import labels
from freelunch.reporting.estimates import PRUNING, RECOVERING, Estimate, levels, missing, of, ordered, suite
from freelunch.reporting.table import Column, Contest, Line, Table
from freelunch.reporting.tasks import MEAN, Kind, accuracy, scores


def build(rows: DataFrame) -> Table:
    """One column per accuracy of a task, and the mean. Guessing is the first line, the dense model that of its runs.

    Raises:
        FreelunchError: as ``tasks.scores``.
    """
    found = scores(rows, "table zero_shot")
    runs = found.rows
    pruned = runs[runs["variant"] != "dense"]
    cell = ("model", "criterion", "pattern", "variant")
    extra = levels(pruned, cell)
    of_pruning, of_recovery = ([axis for axis in extra if axis in axes] for axes in (PRUNING, RECOVERING))
    shown = ("model", *of_pruning, *cell[1:], *of_recovery)
    kinds: dict[str, Kind | None] = {**found.kinds, **({MEAN: None} if MEAN in set(runs["task"]) else {})}
    keyed: dict[tuple[Any, ...], tuple[Estimate | None, ...]] = {}
    if found.chance:
        guessed = {name: Estimate(value) for name, value in found.chance.items()}
        keyed[_key(shown, variant="chance")] = tuple(guessed.get(name) for name in kinds)
    for model, dense in runs[runs["variant"] == "dense"].groupby("model", sort=False):
        keyed[_key(shown, model=model, variant="dense")] = tuple(accuracy(dense, name) for name in kinds)
    for key in ordered(pruned, shown):
        at = of(pruned, shown, key)
        keyed[missing(key)] = tuple(accuracy(at, name) for name in kinds)
    lines: list[Line] = sorted(
        keyed.items(), key=lambda line: [labels.order(*pair) for pair in zip(shown, line[0], strict=True)]
    )
    columns = tuple(Column(name, _label(kind)) for name, kind in kinds.items())
    return Table("zero_shot", suite(rows), _title(kinds), shown, columns, lines,
                 contests=_contests(shown, lines, len(columns)),
                 bold="the best recovered of every model and pattern")  # fmt: skip


def _key(levels: tuple[str, ...], **values: Any) -> tuple[Any, ...]:
    return tuple(values.get(level) for level in levels)


def _title(kinds: dict[str, Kind | None]) -> str:
    parts = ["Zero-shot accuracy in percent; higher is better."]
    if any(kind and kind.metric == "acc_norm" for kind in kinds.values()):
        parts.append("Normalised: answers compared by log-likelihood per character (acc_norm), else as a whole (acc).")
    if MEAN in kinds:
        parts.append("The mean is that of acc over tasks.")
    return " ".join(parts)


def _label(kind: Kind | None) -> str:
    if kind is None:
        return "Mean (%)"
    called = f"{kind.task}, normalised" if kind.metric == "acc_norm" else kind.task
    metric = None if kind.metric in ("acc", "acc_norm") else kind.metric
    return f"{called} ({', '.join(part for part in (metric, kind.way, '%') if part)})"


def _contests(levels: tuple[str, ...], lines: list[Line], columns: int) -> tuple[Contest, ...]:
    places = [levels.index(axis) for axis in ("model", "pattern")]
    rivals: dict[tuple[Any, ...], list[int]] = {}
    for number, (key, _) in enumerate(lines):
        if key[levels.index("variant")] not in ("chance", "dense", labels.NOT_RECOVERED):
            rivals.setdefault(tuple(key[place] for place in places), []).append(number)
    return tuple(
        Contest(tuple((line, column) for line in found), highest=True)
        for found in rivals.values()
        for column in range(columns)
    )
