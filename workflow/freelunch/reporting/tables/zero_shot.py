"""Zero-shot accuracy by task: chance, dense, pruned and recovered."""

from __future__ import annotations

from typing import Any

from pandas import DataFrame

from .. import labels
from ..estimates import PRUNING, RECOVERING, Estimate, levels, missing, of, ordered, suite
from ..table import Column, Contest, Line, Table
from ..tasks import MEAN, accuracy, scores


def build(rows: DataFrame) -> Table:
    """One column per task, and their mean. Guessing is the first line, the dense model the first of its runs.

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
    tasks = [*found.tasks, *([MEAN] if MEAN in set(runs["task"]) else [])]
    keyed: dict[tuple[Any, ...], tuple[Estimate | None, ...]] = {}
    if found.chance:
        guessed = {task: Estimate(value) for task, value in found.chance.items()}
        keyed[_key(shown, variant="chance")] = tuple(guessed.get(task) for task in tasks)
    for model, dense in runs[runs["variant"] == "dense"].groupby("model", sort=False):
        keyed[_key(shown, model=model, variant="dense")] = tuple(accuracy(dense, task) for task in tasks)
    for key in ordered(pruned, shown):
        at = of(pruned, shown, key)
        keyed[missing(key)] = tuple(accuracy(at, task) for task in tasks)
    lines: list[Line] = sorted(
        keyed.items(), key=lambda line: [labels.order(*pair) for pair in zip(shown, line[0], strict=True)]
    )
    columns = tuple(Column(task, _label(task, found.tasks.get(task, MEAN))) for task in tasks)
    title = "Zero-shot accuracy in percent; higher is better."
    return Table("zero_shot", suite(rows), title, shown, columns, lines, contests=_contests(shown, lines, len(tasks)),
                 bold="the best recovered of every model and pattern")  # fmt: skip


def _key(levels: tuple[str, ...], **values: Any) -> tuple[Any, ...]:
    return tuple(values.get(level) for level in levels)


def _label(task: str, metric: str) -> str:
    return "Mean (%)" if task == MEAN else f"{task} (%)" if metric == "acc" else f"{task} ({metric}, %)"


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
