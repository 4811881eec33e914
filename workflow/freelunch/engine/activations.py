"""Hidden states on disk: real safetensors files, written and read through memory maps, never whole in memory."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from freelunch.engine.blocks import Halves, caught, run_part
from freelunch.engine.streaming import Network
from freelunch.engine.transfers import Downloads, arriving
from freelunch.errors import FreelunchError
from freelunch.prune.matrix import finite
from freelunch.results.artifacts import disk_state

TENSOR = "hidden"
_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def create(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A new safetensors file with one tensor, memory-mapped for writing. Its bytes are reserved at once.

    Raises:
        OSError: the disk cannot hold it (a full disk would otherwise kill the process at the first write).
    """
    size = torch.Size(shape).numel() * dtype.itemsize
    header = json.dumps({TENSOR: {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [0, size]}}).encode()
    header += b" " * (-(8 + len(header)) % 64)  # the format allows padding; aligned data can be viewed as any dtype
    start = 8 + len(header)
    with path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.flush()
        os.posix_fallocate(stream.fileno(), 0, start + size)
    storage = torch.UntypedStorage.from_file(str(path), shared=True, nbytes=start + size)
    flat = torch.empty(0, dtype=torch.uint8).set_(storage)  # type: ignore[arg-type]
    return flat[start:].view(dtype).view(shape)


def load(path: Path) -> Tensor:
    """The hidden states ``[sequences, length, width]`` of a file, memory-mapped."""
    try:
        with safe_open(path, framework="pt") as file:
            states: Tensor = file.get_tensor(TENSOR)
    except Exception as error:
        raise FreelunchError(f"{path}: cannot be read as safetensors: {error}") from None
    return states


def scratch(folder: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory-mapped room without a name: it goes when the tensor goes, or when the process is killed."""
    try:
        handle, name = tempfile.mkstemp(dir=folder, suffix=".part", prefix=".")
        os.close(handle)
        try:
            return create(Path(name), shape, dtype)
        finally:
            Path(name).unlink()
    except OSError as error:
        raise FreelunchError(f"no room for hidden states in {folder}: {disk_state(folder, error)}") from None


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` that cover ``count`` sequences in order."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def check_finite(states: Tensor, where: str) -> None:
    """Raise if any hidden state is NaN or infinite."""
    for part in batches(states.shape[0], 16):
        if not finite(states[part]):
            raise FreelunchError(f"{where}: hidden states contain NaN or infinity; try dtype: bfloat16 or float32")


@torch.no_grad()
def forward(
    network: Network, index: int, block: nn.Module, part: str, halves: Halves | None, source: Tensor,
    target: Tensor | None, batch: int,
) -> None:  # fmt: skip
    """Run a part of the loaded block ``index`` over ``source`` ``[sequences, length, width]``, into any ``target``."""
    with Downloads(network.copies) as results:
        for rows, hidden in taken(network, source, batch):
            call = network.calls(*hidden.shape[:2])[index]
            output = run_part(block, part, halves, hidden, call)
            if target is not None:
                results.write(output, target, rows)


def taken(network: Network, source: Tensor, batch: int) -> Iterator[tuple[slice, Tensor]]:
    """Batches of states ``[sequences, length, width]`` where, and as what, a network computes them; with their rows."""
    rows = list(batches(source.shape[0], batch))
    return zip(rows, arriving(network.copies, [(source, each) for each in rows], network.products), strict=True)


def advance(network: Network, index: int, block: nn.Module, states: Sequence[Tensor]) -> None:
    """Replace batches of hidden states ``[sequences, length, width]`` by what the loaded block ``index`` gives."""
    everything = slice(None)
    with Downloads(network.copies) as results:
        arrived = arriving(network.copies, [(state, everything) for state in states], network.products)
        for state, hidden in zip(states, arrived, strict=True):
            results.write(network.run_block(index, block, hidden), state, everything)


def run_states(
    network: Network, index: int, block: nn.Module, part: str, halves: Halves | None, source: Tensor, batch: int,
    folder: Path,
) -> Tensor:  # fmt: skip
    """States ``[sequences, length, width]`` behind a part of the loaded block ``index``.

    At block boundaries they are rounded to the model's dtype, as kept ones are. Between the halves they are not, so
    that the halves in a row give the bits of the block.
    """
    dtype = network.products if part == "attention" else network.dtype
    target = scratch(folder, tuple(source.shape), dtype)
    forward(network, index, block, part, halves, source, target, batch)
    return target


@torch.no_grad()
def caught_states(
    network: Network, index: int, part: str, halves: Halves | None, matrix: str, source: Tensor, batch: int,
    folder: Path,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Inputs and outputs ``[sequences, length, ·]`` of a linear layer when a part of its block is run on ``source``."""
    rooms: list[Tensor] = []
    with network.block(index) as block, Downloads(network.copies) as results:
        for rows, hidden in taken(network, source, batch):
            call = network.calls(*hidden.shape[:2])[index]
            found = caught(block, matrix, partial(run_part, block, part, halves, hidden, call))
            # some layers flatten batch and length before their MLP
            shaped = [each.reshape(*hidden.shape[:2], each.shape[-1]) for each in found]
            rooms = rooms or [
                scratch(folder, (*source.shape[:2], each.shape[-1]), network.products) for each in shaped
            ]  # fmt: skip
            for room, each in zip(rooms, shaped, strict=True):
                results.write(each, room, rows)
    inputs, outputs = rooms
    for kind, room in (("input", inputs), ("output", outputs)):
        check_finite(room, f"{kind} of {matrix} in block {index}")
    return inputs, outputs


class States:
    """Hidden states at any position (see ``windows``), from the kept block boundaries.

    What was not kept is computed forward from the nearest state before it, with the same batches as the dense pass,
    and so with the same bits. Only states from the last :meth:`drop_before` on are held.

    Args:
        network: the dense model, or a pruned one whose blocks before the positions that were asked for do not change.
        kept: for each kept block boundary, its states ``[sequences, length, width]``; looked up when needed.
        batch: sequences per forward pass.
        folder: where computed states find room on disk.
    """

    def __init__(self, network: Network, kept: Mapping[int, Tensor], batch: int, folder: Path) -> None:
        if 0 not in kept:
            raise FreelunchError("the dense cache lacks the states at the first block's input")
        self._network, self._kept, self._batch, self._folder = network, kept, batch, folder
        self._held: dict[int, Tensor] = {}

    @property
    def network(self) -> Network:
        """The network they are states of."""
        return self._network

    def drop_before(self, position: int) -> None:
        """Let go of states at earlier positions."""
        self._held = {at: states for at, states in self._held.items() if at >= position}

    def at(self, position: int, halves: Halves | None = None) -> Tensor:
        """States at a position; ``halves`` is needed for odd ones."""
        if position in self._held:
            return self._held[position]
        if position % 2 == 0 and position // 2 in self._kept:
            states = self._kept[position // 2]
        else:
            states = self._computed(position, halves)
            check_finite(states, f"in block {(position - 1) // 2}")
        self._held[position] = states
        return states

    def _computed(self, position: int, halves: Halves | None) -> Tensor:
        kept = max(2 * boundary for boundary in self._kept if 2 * boundary < position)
        # from between two halves one gets on only to the end of that block, and only knowing the halves
        usable = (at for at in self._held if at < position and (at % 2 == 0 or (halves and at == position - 1)))
        start = max([kept, *usable])
        states = self._held[start] if start in self._held else self._kept[start // 2]
        while start < position:
            stop = min(start + 2 - start % 2, position)
            part = "block" if stop - start == 2 else ("mlp" if start % 2 else "attention")
            states = self._run(start // 2, part, halves, states)
            start = stop
        return states

    def _run(self, index: int, part: str, halves: Halves | None, states: Tensor) -> Tensor:
        with self._network.block(index) as block:
            return run_states(self._network, index, block, part, halves, states, self._batch, self._folder)
