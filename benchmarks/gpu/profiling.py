"""Which kernels a device spends its time in, and how long it waits for work."""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from .cells import Row, now

SHOWN = 10
"""Kernels that are listed."""


class Profile:
    """A profile of what a device does between :meth:`start` and :meth:`stop`.

    Kernels on an accelerator; on the CPU torch's operators, of which some lie inside of others.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        activity, self._category = (
            (ProfilerActivity.CUDA, "kernel") if device.type == "cuda" else (ProfilerActivity.CPU, "cpu_op")
        )
        self._profiler = profile(activities=[activity])
        self._started: float | None = None
        self._seconds = 0.0

    def start(self) -> None:
        now(self._device)
        self._profiler.start()
        self._started = time.perf_counter()

    def stop(self) -> None:
        """Does nothing where nothing was started."""
        if self._started is not None:
            self._seconds = now(self._device) - self._started
            self._started = None
            self._profiler.stop()

    def row(self) -> Row:
        """The longest kernels, and the share of time in which none ran.

        Raises:
            RuntimeError: the profiler saw no kernel.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            self._profiler.export_chrome_trace(str(path))
            events = json.loads(path.read_text(encoding="utf-8", errors="replace"), strict=False)["traceEvents"]
        return summary(events, self._category, self._seconds)


def summary(events: Iterable[dict[str, Any]], category: str, seconds: float) -> Row:
    """Of the events of a trace in Chrome's format, whose times are microseconds.

    Raises:
        RuntimeError: none is of the category.
    """
    total: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    spans: list[tuple[float, float]] = []
    copied = 0.0
    for event in events:
        if event.get("cat") == category:
            total[event["name"]] += event["dur"] / 1e6
            calls[event["name"]] += 1
            spans.append((event["ts"], event["ts"] + event["dur"]))
        elif event.get("cat") == "gpu_memcpy":
            copied += event["dur"] / 1e6
    if not spans:
        raise RuntimeError(f"the profiler saw no event of the kind {category}")
    longest = sorted(total, key=total.__getitem__, reverse=True)[:SHOWN]
    return {
        "seconds": seconds,
        "waiting": 1 - covered(spans) / 1e6 / seconds,
        "copying": copied / seconds,
        "kernels": [{"name": name, "seconds": total[name], "calls": calls[name]} for name in longest],
    }


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of what some spans of time cover; where they overlap it counts once."""
    length, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        length += max(0.0, end - max(start, until))
        until = max(until, end)
    return length


def lines(row: Row) -> list[str]:
    """The kernels of a row, and what they add up to."""
    said = f"{row['shape']}, {row['what']}: {row['seconds']:.3f} s"
    shares = f"no kernel runs in {row['waiting']:.1%} of it, copies (beside kernels too) in {row['copying']:.1%}"
    found = [f"{said}; {shares}"]
    for kernel in row["kernels"]:
        share = kernel["seconds"] / row["seconds"]
        found.append(f"  {kernel['seconds'] * 1000:9.2f} ms {share:6.1%} {kernel['calls']:6} x  {kernel['name'][:90]}")
    return found
