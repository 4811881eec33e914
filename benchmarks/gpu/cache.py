"""What a dense cache delivers: hidden states of a file, batch by batch on the device, and a training that reads them.

By way of the pinned rings of ``engine.transfers``, and by plain copies. From the page cache and from the disk;
alone, and beside products on the device that take as long as a step of training; and in a training and a dense pass of
the package. If these are not at least ``WORTH`` faster with rings, the package can do without.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from freelunch.engine.states import batches, create, forward, load, scratch
from freelunch.engine.streaming import Network
from freelunch.engine.transfers import Event, arriving, copies_for

from . import blocks
from .cells import Cell, Row, fastest, now, run_cells, table

WORTH = 0.1
"""How much faster rings must be to stay."""
STEP_RATE = 5.0
"""GB of states that a second of training reads, where that was not measured: a block of an 8B on an H100, about."""
DECISIVE = ("training", "dense pass")
"""What is done with the states in earnest."""


@dataclass(frozen=True)
class Scale:
    """What is read.

    Attributes:
        shape: sequences, tokens of each, and width.
        batch: sequences at a time.
        blocks: what is trained on such states.
        limit: seconds after which a reading ends, in any case.
    """

    shape: tuple[int, int, int]
    batch: int
    blocks: blocks.Scale
    limit: float


FULL = Scale((48, 4096, 8192), 2, blocks.FULL, 4.0)
"""3 GiB, in batches as a step of a 72B reads them."""
SMALLEST = Scale((32, 64, 64), 2, blocks.SMALLEST, 0.5)


def measure(
    device: torch.device, smallest: bool, seconds: float = 30.0, needed: Mapping[str, float] | None = None,
    folder: Path | None = None, scale: Scale | None = None, keep: Callable[[dict[str, Any]], object] = len,
) -> dict[str, Any]:  # fmt: skip
    """All rows that there is time for; ``keep`` is given the result so far after every measurement.

    Args:
        needed: GB of states that a second of training reads, by what is trained (:func:`needed_by`).
        folder: on the disk that is measured; that of temporary files if None.
        scale: another size.
    """
    end = time.perf_counter() + seconds
    scale = scale or (SMALLEST if smallest else FULL)
    needed = dict(needed or {})
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name) / "states.safetensors"
        written = _write(path, scale.shape, device)

        def result(rows: list[Row]) -> dict[str, Any]:
            about = {"accelerator": device.type == "cuda", "written_gb_per_s": written, "needed": needed}
            return about | {"rows": rows, "gains": gains(rows)}

        cells = _cells(path, scale, device, max(needed.values(), default=STEP_RATE))
        return result(run_cells(cells, device, end - time.perf_counter(), lambda rows: keep(result(rows))))


def needed_by(result: Mapping[str, Any]) -> dict[str, float]:
    """GB of states that a second of training reads, by what is trained; of the rows of :func:`blocks.measure`."""
    return {
        f"{row['shape']}, {row['what']}, batch {row['batch']}": row["states_gb_per_s"]
        for row in result["rows"]
        if "states_gb_per_s" in row
    }


def gains(rows: Sequence[Row]) -> dict[str, float]:
    """How much faster rings are than plain copies, by what was read: 0.1 is a tenth."""
    speed = {(row["what"], row["how"]): row["speed"] for row in rows if "speed" in row}
    both = [what for what, how in speed if how == "rings" and (what, "plain") in speed]
    return {what: speed[what, "rings"] / speed[what, "plain"] - 1 for what in both}


def lines(result: Mapping[str, Any]) -> list[str]:
    """A table, what a training needs, and whether rings are worth their lines."""
    shown = [row | {"GB/s": row.get("gb_per_s"), "steps/s": row.get("steps_per_s")} for row in result["rows"]]
    found = [
        *table(shown, ("what", "how"), {"GB/s": ".2f", "steps/s": ".2f"}),
        f"written and synced at {result['written_gb_per_s']:.2f} GB/s",
    ]
    cached = {row["cached"] for row in result["rows"] if "cached" in row}
    if cached - {0.0}:
        known = max((share for share in cached if share is not None), default=None)
        said = "it is not known how much" if known is None else f"{known:.0%}"
        found.append(f"from the disk: {said} of the file was in the page cache when the reading began")
    found += [f"needed: {rate:8.2f} GB/s by {what}" for what, rate in result["needed"].items()]
    found += [f"rings against plain copies, {what}: {gain:+.0%}" for what, gain in result["gains"].items()]
    decisive = [gain for what, gain in result["gains"].items() if what.startswith(DECISIVE)]
    if not result["accelerator"]:
        found.append("a CPU has no copies to make, by rings or otherwise: nothing follows from these rates")
    elif decisive:
        verdict = "they are worth it" if max(decisive) >= WORTH else "the package can do without"
        found.append(f"rings, in training and dense pass: {max(decisive):+.0%} at best, to be {WORTH:+.0%}: {verdict}")
    return found


# --- the file --------------------------------------------------------------------------------------------------------


def _write(path: Path, shape: tuple[int, ...], device: torch.device) -> float:
    """Write random states as the dense pass does, until they are on the disk; GB a second."""
    made = torch.randn(shape[1:], device=device).bfloat16().cpu()
    started = time.perf_counter()
    states = create(path, shape, torch.bfloat16)
    for number, sequence in enumerate(states):
        torch.add(made, number, out=sequence)  # no two sequences are alike
    size = states.nbytes
    del states, sequence
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return size / (time.perf_counter() - started) / 1e9


def drop(path: Path) -> float | None:
    """Have a file's pages leave the page cache; the share of those looked at that stay, None if it is not known.

    Only pages leave that are on the disk and that no process maps.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return cached_share(path)


def cached_share(path: Path, looked_at: int = 64) -> float | None:
    """Share of a file that is in the page cache, by some places of it; None where the file system does not say."""
    size, found = path.stat().st_size, 0
    with path.open("rb", buffering=0) as file:
        for number in range(looked_at):
            try:
                os.preadv(file.fileno(), [bytearray(1)], size * number // looked_at, os.RWF_NOWAIT)
                found += 1
            except BlockingIOError:
                pass
            except OSError:
                return None
    return found / looked_at


# --- readers ---------------------------------------------------------------------------------------------------------

Reader = Callable[[Tensor, Sequence[slice], torch.device], Iterator[Tensor]]


def _rings(states: Tensor, parts: Sequence[slice], device: torch.device) -> Iterator[Tensor]:
    return arriving(copies_for(device), [(states, rows) for rows in parts], states.dtype)


def _plain(states: Tensor, parts: Sequence[slice], device: torch.device) -> Iterator[Tensor]:
    for rows in parts:
        yield states[rows].to(device, copy=True)


READERS: dict[str, Reader] = {"rings": _rings, "plain": _plain}


class _Done:
    """The event of a copy that is over when it was asked for."""

    def synchronize(self) -> None:
        pass


class PlainCopies:
    """Copies of pageable memory in the order of the device's work: what the rings are compared with."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def pinned(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def up(self, host: Tensor, dtype: torch.dtype) -> tuple[Tensor, _Done]:
        return host.to(self._device, copy=True).to(dtype), _Done()

    def arrived(self, tensor: Tensor, event: Event) -> Tensor:
        return tensor

    def down(self, tensor: Tensor, host: Tensor) -> _Done:
        host.copy_(tensor)
        return _Done()

    def computed(self) -> _Done:
        return _Done()


# --- measurements ----------------------------------------------------------------------------------------------------


def _cells(path: Path, scale: Scale, device: torch.device, rate: float) -> Iterator[Cell]:
    """What decides about the rings comes first."""

    def cell(what: str, how: str, rows: Callable[[], Iterator[Row]], seconds: float) -> Cell:
        return Cell({"what": what, "how": how}, rows, seconds)

    name, facts = next(iter(scale.blocks.shapes.items()))
    block = blocks.Block(name, facts, scale.blocks.length, device, path.parent)
    batch = scale.blocks.batches[0]
    for what, rows_of in (("training", training_rows), ("dense pass", pass_rows)):
        for how in READERS:
            yield cell(f"{what} of {name}", how, partial(rows_of, block, batch, how), scale.limit)
    for how in READERS:
        yield cell("page cache", how, partial(reading_rows, path, scale, device, how), scale.limit / 2)
    for how in READERS:
        yield cell("disk", how, partial(reading_rows, path, scale, device, how, dropped=True), scale.limit)
    for how in READERS:
        rows = partial(reading_rows, path, scale, device, how, rate=rate)
        yield cell(f"page cache, beside products for {rate:.1f} GB/s", how, rows, scale.limit / 2)


def reading_rows(
    path: Path, scale: Scale, device: torch.device, how: str, rate: float | None = None, dropped: bool = False
) -> Iterator[Row]:
    """GB a second of one reading of the file, or of the better of two if it is in the page cache.

    Args:
        rate: GB a second at which products on the device would take as long as the batches they are given.
        dropped: whether the file is read from the disk.

    Raises:
        RuntimeError: a batch did not arrive as it was.
    """
    cached = drop(path) if dropped else None
    states = load(path)
    parts = list(batches(len(states), scale.batch))
    product = _products(states[parts[0]], device, rate) if rate is not None else None
    best = 0.0
    for _ in range(1 if dropped else 2):
        count, batch, size = 0, torch.empty(0), 0
        started = now(device)
        reader = READERS[how](states, parts, device)
        for batch in reader:
            count, size = count + 1, size + batch.nbytes
            if product is not None:
                product(batch)
            if time.perf_counter() - started > scale.limit:
                break
        best = max(best, size / (now(device) - started) / 1e9)
        if not torch.equal(batch.cpu(), states[parts[count - 1]]):
            raise RuntimeError(f"batch {count - 1} did not arrive as it was")
    yield {"gb_per_s": best, "speed": best} | ({"cached": cached} if dropped else {})


def _products(batch: Tensor, device: torch.device, rate: float) -> Callable[[Tensor], None]:
    """Products of a batch that take as long as a step does that reads ``rate`` GB a second."""
    width = batch.shape[-1]
    weight = torch.randn(width, width, device=device).to(batch.dtype) / width**0.5
    there = batch.to(device)
    each = fastest(lambda: there @ weight, device)
    times = max(1, round(batch.nbytes / 1e9 / rate / each))

    def product(arrived: Tensor) -> None:
        for _ in range(times):
            arrived @ weight

    return product


def training_rows(block: blocks.Block, batch: int, how: str) -> Iterator[Row]:
    """The fastest step of the training of a whole block."""
    copies = PlainCopies(block.device) if how == "plain" else None
    (row,) = blocks.training_rows(block, blocks.WINDOWS[0], batch, copies=copies)
    yield {"gb_per_s": row["states_gb_per_s"], "steps_per_s": 1 / row["step_seconds"], "speed": 1 / row["step_seconds"]}


def pass_rows(block: blocks.Block, batch: int, how: str) -> Iterator[Row]:
    """A forward pass from states in the host's memory to others: what is read and written is counted."""
    network, hidden = block.network(), block.hidden(blocks.STEPS * batch)
    with network.block(0) as module:
        run = partial(_forward, network, module) if how == "plain" else partial(_forward_by_rings, network, module)
        seconds = fastest(lambda: run(hidden, scratch(block.folder, tuple(hidden.shape), hidden.dtype), batch),
                          block.device, 2)  # fmt: skip
    speed = 2 * hidden.nbytes / seconds / 1e9
    yield {"gb_per_s": speed, "speed": speed}


def _forward_by_rings(network: Network, module: nn.Module, source: Tensor, target: Tensor, batch: int) -> None:
    forward(network, 0, module, "block", None, source, target, batch)


def _forward(network: Network, module: nn.Module, source: Tensor, target: Tensor, batch: int) -> None:
    """The shortest code that does the same."""
    for rows in batches(len(source), batch):
        target[rows] = network.run_block(0, module, source[rows]).to(target.dtype).cpu()
