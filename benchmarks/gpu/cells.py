"""Measurements one by one: each gives rows of a table, or a row that says why not; and how time and memory are taken.

On the CPU everything runs too, without peaks of memory.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

Row = dict[str, Any]
"""Of JSON values; with ``error`` or ``left out`` in place of what was to be measured."""


@dataclass(frozen=True)
class Cell:
    """A measurement.

    Attributes:
        label: what is measured; the first columns of its rows.
        measure: gives its rows, without the label.
        seconds: how long it takes, about; it is left out when less is left.
    """

    label: Row
    measure: Callable[[], Iterable[Row]]
    seconds: float = 0.0


def run_cells(
    cells: Iterable[Cell], device: torch.device, seconds: float, keep: Callable[[list[Row]], object] = len
) -> list[Row]:
    """The rows of cells in order, until their time is over; ``keep`` is given all rows so far after every cell.

    An exception ends the cell in which it is raised, not the run. Of what a cell holds on the device nothing stays.
    """
    if device.type == "cuda":
        torch.cuda.init()
    gc.freeze()  # what is there now stays, and need not be looked through after every cell
    rows: list[Row] = []
    end = time.perf_counter() + seconds
    for cell in cells:
        started = time.perf_counter()
        if started + cell.seconds >= end:
            rows.append({**cell.label, "left out": f"{max(0.0, end - started):.0f} s were left"})
            continue
        try:
            reset_peak(device)
            for row in _each(cell):
                rows.append({**cell.label, **row})  # noqa: PERF401 (what came before a failure stays)
        except Exception as error:
            rows.append({**cell.label, "error": _one_line(error)})
        keep(rows)
        gc.collect()
        if device.type == "cuda":
            # after an error on the device itself this fails as well, and so will what comes after
            with suppress(RuntimeError):
                torch.cuda.empty_cache()
    gc.unfreeze()
    return rows


def _each(cell: Cell) -> Iterator[Row]:
    """Rows of a cell, with the seconds that each took in all."""
    before = time.perf_counter()
    for row in cell.measure():
        now = time.perf_counter()
        yield {**row, "took": round(now - before, 2)}
        before = time.perf_counter()


def _one_line(error: Exception) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:300]


# --- time and memory -------------------------------------------------------------------------------------------------


def now(device: torch.device) -> float:
    """Seconds on the clock, when the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def fastest(action: Callable[[], object], device: torch.device, times: int = 3) -> float:
    """Seconds of the fastest of several runs, after one to warm up."""
    action()
    best = float("inf")
    for _ in range(times):
        started = now(device)
        action()
        best = min(best, now(device) - started)
    return best


def reset_peak(device: torch.device) -> None:
    """Forget the peak of memory so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float | None:
    """Peak of what torch allocated on the device since :func:`reset_peak`; None on the CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


@contextmanager
def after_steps(do: Callable[[int], object]) -> Iterator[None]:
    """Call ``do`` behind every step of any optimiser, with its number from 1, while the context is open."""
    numbers = count(1)

    def hook(*_: object) -> None:
        do(next(numbers))

    handle = register_optimizer_step_post_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class Steps:
    """Takes the times at which the steps of an optimiser end, on the device's own clock: nothing waits for them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ends: list[Any] = []

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Steps count while the context is open."""
        with after_steps(self._end):
            yield

    def fastest(self) -> float:
        """Seconds of the fastest step: from the end of the one before, so that validation between them is left out
        where it follows only some of them. The first step, which is slower, is never counted.
        """
        now(self._device)
        return min(self._between(start, end) for start, end in pairwise(self._ends))

    def _end(self, _step: int) -> None:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._ends.append(event)
        else:
            self._ends.append(time.perf_counter())

    def _between(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end) / 1000 if self._device.type == "cuda" else end - start)


# --- tables ----------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row], labels: Sequence[str], columns: Mapping[str, str]) -> list[str]:
    """Lines of a table.

    Args:
        rows: of :func:`run_cells`.
        labels: keys of the first columns.
        columns: keys of the others, and how each is formatted (``.1f``).
    """
    text = [[str(row.get(label, "")) for label in labels] for row in rows]
    width = [max(len(label), *(len(line[at]) for line in text), 0) for at, label in enumerate(labels)]
    heads = {name: max(len(name), 8) for name in columns}

    def line(first: Sequence[str], rest: str) -> str:
        return "  ".join([*(each.ljust(size) for each, size in zip(first, width, strict=True)), rest]).rstrip()

    lines = [line(labels, "  ".join(name.rjust(size) for name, size in heads.items()))]
    for row, first in zip(rows, text, strict=True):
        said = next((f"{key}: {row[key]}" for key in ("error", "left out") if key in row), None)
        values = ((row.get(name), form, heads[name]) for name, form in columns.items())
        numbers = "  ".join(("-" if value is None else format(value, form)).rjust(size) for value, form, size in values)
        lines.append(line(first, numbers if said is None else said))
    return lines
