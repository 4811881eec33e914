"""Batches, read ahead of use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor


def ahead(load: Callable[[Tensor], Any], order: list[Tensor]) -> Iterator[Any]:
    """Load one batch after the other, each while the one before is used."""
    with ThreadPoolExecutor(1) as reader:
        pending = [reader.submit(load, rows) for rows in order[:1]]
        for at in range(len(order)):
            batch = pending.pop().result()
            pending += [reader.submit(load, rows) for rows in order[at + 1 : at + 2]]
            yield batch
