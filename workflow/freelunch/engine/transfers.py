"""Batches on their way to an accelerator and back, beside what it computes.

Hidden states lie in memory-mapped files, which an accelerator can only be given by way of pinned memory if it is to
compute meanwhile. A ring of pinned buffers and a stream of copies serve each direction; the host's part of the work, to
and from the files, is done by a thread. On the CPU there is nothing to copy, and none of this.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

SLOTS = 2
"""Pinned buffers of a ring: one is filled or emptied by the host while the other is copied."""
Rows = Tensor | slice
"""Which sequences: their numbers, or a range."""
Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


class Event(Protocol):
    """What was asked of an accelerator up to some point."""

    def synchronize(self) -> None:
        """Wait until it is done."""


class Copies(Protocol):
    """Copies between pinned memory and an accelerator, in order, beside its computations."""

    def pinned(self, size: int) -> Tensor:
        """Host memory of so many bytes, ``uint8``, that can be copied from and to meanwhile."""

    def up(self, host: Tensor, dtype: torch.dtype) -> tuple[Tensor, Event]:
        """Begin to copy to the accelerator."""

    def arrived(self, tensor: Tensor, event: Event) -> Tensor:
        """A tensor of :meth:`up`, for computations from now on."""

    def down(self, tensor: Tensor, host: Tensor) -> Event:
        """Begin to copy to the host what was computed so far."""

    def computed(self) -> Event:
        """All computations that were asked for so far."""


class CudaCopies:
    """On CUDA streams of their own, one per direction: a copy down waits for computations, and one up should not."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._up, self._down = device, torch.cuda.Stream(device), torch.cuda.Stream(device)

    def pinned(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def up(self, host: Tensor, dtype: torch.dtype) -> tuple[Tensor, Event]:
        with torch.cuda.stream(self._up):
            return host.to(self._device, non_blocking=True).to(dtype), self._up.record_event()

    def arrived(self, tensor: Tensor, event: Any) -> Tensor:
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(event)
        tensor.record_stream(computing)  # its memory is not given to another copy before the computation is done
        return tensor

    def down(self, tensor: Tensor, host: Tensor) -> Event:
        self._down.wait_stream(torch.cuda.current_stream(self._device))
        tensor.record_stream(self._down)
        with torch.cuda.stream(self._down):
            host.copy_(tensor, non_blocking=True)
            event: Event = self._down.record_event()
            return event

    def computed(self) -> Event:
        event: Event = torch.cuda.current_stream(self._device).record_event()
        return event


def copies_for(device: torch.device) -> Copies | None:
    """How a device is given batches; None for the CPU, which has them already."""
    return CudaCopies(device) if device.type == "cuda" else None


@dataclass
class _Slot:
    """A pinned buffer, and how to wait for what used it last."""

    buffer: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    release: Callable[[], object] | None = None

    def wait(self) -> None:
        if self.release is not None:
            release, self.release = self.release, None
            release()


class _Ring:
    """Slots that are used in turn, and the copies that go through them."""

    def __init__(self, copies: Copies) -> None:
        self.copies, self.slots = copies, [_Slot() for _ in range(SLOTS)]
        self._turns = cycle(self.slots)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[_Slot, Tensor]:
        """The next slot, when it is free, and its buffer as a tensor."""
        slot = next(self._turns)
        slot.wait()
        size = torch.Size(shape).numel() * dtype.itemsize
        if len(slot.buffer) < size:
            slot.buffer = self.copies.pinned(size)
        return slot, slot.buffer[:size].view(dtype).view(shape)


@dataclass(frozen=True)
class Sent:
    """A batch that is on its way."""

    tensor: Tensor
    under_way: tuple[Copies, Event] | None = None

    def received(self) -> Tensor:
        """The batch, for computations from now on."""
        if self.under_way is None:
            return self.tensor
        copies, event = self.under_way
        return copies.arrived(self.tensor, event)


class Uploads:
    """Sends batches of states to a device, by the ``copies`` that :func:`copies_for` has for it."""

    def __init__(self, copies: Copies | None) -> None:
        self._ring = None if copies is None else _Ring(copies)
        self._lock = threading.Lock()

    def send(self, states: Tensor, rows: Rows, dtype: torch.dtype) -> Sent:
        """Read rows of ``states`` ``[sequences, ...]`` in the host's memory, and begin to copy them."""
        if self._ring is None:
            return Sent(states[rows].to(dtype))
        count = len(range(len(states))[rows]) if isinstance(rows, slice) else len(rows)
        # validation reads in a thread of its own while the one of training still reads ahead
        with self._lock:
            slot, host = self._ring.take((count, *states.shape[1:]), states.dtype)
            if isinstance(rows, slice):
                host.copy_(states[rows])
            else:
                torch.index_select(states, 0, rows, out=host)
            tensor, event = self._ring.copies.up(host, dtype)
            slot.release = event.synchronize
        return Sent(tensor, (self._ring.copies, event))


class Downloads:
    """Writes what a device computed to the host's memory, all of it by the time the context closes.

    ``copies`` are those that :func:`copies_for` has for the device.
    """

    def __init__(self, copies: Copies | None) -> None:
        self._ring = None if copies is None else _Ring(copies)
        self._writer = ThreadPoolExecutor(1)  # starts its thread when it is given something to do

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            for slot in self._ring.slots if self._ring is not None and kind is None else ():
                slot.wait()
        finally:
            self._writer.shutdown()

    def write(self, tensor: Tensor, target: Tensor, rows: Rows) -> None:
        """``target[rows] = tensor``, in the target's dtype, some time until the context closes.

        Raises:
            Exception: of writing an earlier batch.
        """
        tensor = tensor.to(target.dtype)
        if self._ring is None:
            target[rows] = tensor
            return
        slot, host = self._ring.take(tuple(tensor.shape), tensor.dtype)
        event = self._ring.copies.down(tensor, host)

        def put() -> None:
            event.synchronize()
            target[rows] = host

        slot.release = self._writer.submit(put).result


def arriving(copies: Copies | None, parts: Sequence[tuple[Tensor, Rows]], dtype: torch.dtype) -> Iterator[Tensor]:
    """Rows of states in the host's memory on the device, in ``dtype``, each read while the one before is computed."""
    uploads = Uploads(copies)
    if copies is None:
        yield from (uploads.send(states, rows, dtype).received() for states, rows in parts)
        return
    behind: deque[Event] = deque()
    for sent in ahead(lambda part: uploads.send(*part, dtype), parts):
        # a host that is not held back fills the accelerator's memory with batches that wait
        if len(behind) == SLOTS:
            behind.popleft().synchronize()
        yield sent.received()
        behind.append(copies.computed())


def ahead(load: Callable[[Item], Loaded], order: Sequence[Item]) -> Iterator[Loaded]:
    """Load one batch after the other, in a thread, each while the one before is used."""
    with ThreadPoolExecutor(1) as reader:
        pending = [reader.submit(load, item) for item in order[:1]]
        for at in range(len(order)):
            batch = pending.pop().result()
            pending += [reader.submit(load, item) for item in order[at + 1 : at + 2]]
            yield batch
