"""Allocations: how a target sparsity is spread over matrices."""

from __future__ import annotations

from .patterns import Pattern


def uniform(pattern: Pattern, shapes: dict[str, tuple[int, int]]) -> dict[str, Pattern]:
    """The same pattern for every matrix of ``shapes`` (rows, columns by name)."""
    return dict.fromkeys(shapes, pattern)
