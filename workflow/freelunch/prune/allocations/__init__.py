"""Allocations, one small class each, in a module of the allocation's name: how a sparsity is spread over matrices.

To add one, write ``allocations/<name>.py`` that ends with ``method = YourAllocation``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from freelunch.prune.methods import Methods

if TYPE_CHECKING:
    from freelunch.prune.allocations.allocation import Allocation

_METHODS = Methods(__name__, Path(__file__).parent, "allocation", "allocation")
NAMES = _METHODS.names


def parse_allocation(text: object) -> Allocation:
    """The allocation that a text such as ``uniform`` or ``owl(lambda=0.08)`` stands for."""
    found: Allocation = _METHODS.parse(text)
    return found
