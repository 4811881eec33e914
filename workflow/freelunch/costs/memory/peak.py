"""What a peak of memory is made of: a process, and what a stage holds at the one time or the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .machine import Machine

MIB = 2**20
PLAIN = 300 * MIB
"""A process that has torch and no transformers, and what its libraries take on the way; stage ``prune``, ``data``."""
NETWORK = 512 * MIB
"""One that runs a network: transformers, the family's code, a tokenizer."""
HOLES = 64 * MIB
"""What C's allocator does not give back where many tensors come and go."""
HARNESS = 100 * MIB
"""lm-eval besides."""
ACCELERATOR = 2048 * MIB
"""What CUDA's libraries and pinned batches take of the host's memory. Not measured: no GPU was at hand."""


@dataclass(frozen=True)
class Phase:
    """Bytes that are held at one time: where products are computed, and in the host's memory besides."""

    device: float = 0.0
    host: float = 0.0


@dataclass(frozen=True)
class Peak:
    """Bytes of memory that a stage takes at most.

    Attributes:
        host: that the host must have.
        device: that torch allocates on the accelerator, none where there is no accelerator.
        mapped: pages of files of hidden states, which count as the process' own for as long as the host has room. The
            system takes them back when it has not.
    """

    host: float
    device: float = 0.0
    mapped: float = 0.0

    def beside(self, other: Peak) -> Peak:
        """Of a job that does one after the other."""
        return Peak(max(self.host, other.host), max(self.device, other.device), max(self.mapped, other.mapped))


def peak(machine: Machine, process: float, phases: Iterable[Phase], mapped: float = 0.0) -> Peak:
    """The peak of a process that goes through some phases, on a machine."""
    phases = list(phases)
    if machine.accelerator:
        host, device = (max(getattr(phase, name) for phase in phases) for name in ("host", "device"))
        return Peak(process + ACCELERATOR + host, device, mapped)
    return Peak(process + max(phase.device + phase.host for phase in phases), 0.0, mapped)
