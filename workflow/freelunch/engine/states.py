"""Hidden states: memory-mapped safetensors files, never whole in memory, and how blocks of a network turn them into
others.
"""

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

from freelunch.engine.blocks import Halves, caught, matrices, run_part
from freelunch.engine.streaming import Network
from freelunch.engine.transfers import Downloads, arriving
from freelunch.errors import FreelunchError
from freelunch.pruning.matrix import Statistics, finite
from freelunch.pruning.statistics import Collector
from freelunch.results.artifacts import disk_state

TENSOR = "hidden"
_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}

# --- files -----------------------------------------------------------------------------------------------------------


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
    """A memory-mapped tensor without a file name: its disk space is free when it goes, or the process is killed."""
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


# --- passes through a block ------------------------------------------------------------------------------------------


def taken(network: Network, source: Tensor, batch: int) -> Iterator[tuple[slice, Tensor]]:
    """Rows and batches of states ``[sequences, length, width]``, on the device and in the dtype of the products."""
    rows = list(batches(source.shape[0], batch))
    return zip(rows, arriving(network.copies, [(source, each) for each in rows], network.products), strict=True)


@torch.no_grad()
def forward(
    network: Network, index: int, block: nn.Module, part: str, halves: Halves | None, source: Tensor,
    target: Tensor | None, batch: int,
) -> None:  # fmt: skip
    """Run a part of the loaded block ``index`` over ``source`` ``[sequences, length, width]``, into any ``target``."""
    with Downloads(network.copies) as downloads:
        for rows, hidden in taken(network, source, batch):
            output = run_part(block, part, halves, hidden, network.calls(*hidden.shape[:2])[index])
            if target is not None:
                downloads.write(output, target, rows)


def advance(network: Network, index: int, block: nn.Module, states: Sequence[Tensor]) -> None:
    """Replace batches of hidden states ``[sequences, length, width]`` by what the loaded block ``index`` gives."""
    with Downloads(network.copies) as downloads:
        arrived = arriving(network.copies, [(state, slice(None)) for state in states], network.products)
        for state, hidden in zip(states, arrived, strict=True):
            downloads.write(network.run_block(index, block, hidden), state, slice(None))


def run_states(
    network: Network, index: int, block: nn.Module, part: str, halves: Halves | None, source: Tensor, batch: int,
    folder: Path,
) -> Tensor:  # fmt: skip
    """States ``[sequences, length, width]`` behind a part of the loaded block ``index``.

    At block boundaries they are rounded to the model's dtype, as kept ones are. Between the halves they are not, so
    that the halves in a row give the bits of the block.
    """
    target = scratch(folder, tuple(source.shape), network.products if part == "attention" else network.dtype)
    forward(network, index, block, part, halves, source, target, batch)
    return target


@torch.no_grad()
def caught_states(
    network: Network, index: int, part: str, halves: Halves | None, matrix: str, source: Tensor, batch: int,
    folder: Path,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Inputs and outputs ``[sequences, length, ·]`` of a linear layer when a part of its block is run on ``source``."""
    targets: list[Tensor] = []
    with network.block(index) as block, Downloads(network.copies) as downloads:
        for rows, hidden in taken(network, source, batch):
            call = network.calls(*hidden.shape[:2])[index]
            pair = caught(block, matrix, partial(run_part, block, part, halves, hidden, call))
            for kind, states in enumerate(pair):
                if len(targets) == kind:
                    targets.append(scratch(folder, (*source.shape[:2], states.shape[-1]), network.products))
                # some layers flatten batch and length before their MLP
                downloads.write(states.reshape(*hidden.shape[:2], -1), targets[kind], rows)
    inputs, outputs = targets
    check_finite(inputs, f"input of {matrix} in block {index}")
    check_finite(outputs, f"output of {matrix} in block {index}")
    return inputs, outputs


# --- states anywhere in a network ------------------------------------------------------------------------------------


class States:
    """Hidden states at any position (see ``windows``), from the kept block boundaries.

    What was not kept is computed forward from the nearest state before it, with the same batches as the dense pass,
    and so with the same bits. Only states from the last :meth:`drop_before` on are held.

    Args:
        network: the dense model, or a pruned one whose blocks before the positions that were asked for do not change.
        kept: for each kept block boundary, its states ``[sequences, length, width]``; looked up when needed.
        batch: sequences per forward pass.
        folder: where computed states are written.
    """

    def __init__(self, network: Network, kept: Mapping[int, Tensor], batch: int, folder: Path) -> None:
        if 0 not in kept:
            raise FreelunchError("the dense cache lacks the states at the first block's input")
        self.network, self._kept, self._batch, self._folder = network, kept, batch, folder
        self._held: dict[int, Tensor] = {}

    def drop_before(self, position: int) -> None:
        """Let go of states at earlier positions."""
        self._held = {at: states for at, states in self._held.items() if at >= position}

    def at(self, position: int, halves: Halves | None = None) -> Tensor:
        """States at a position; ``halves`` is needed for odd ones."""
        if position not in self._held:
            if position % 2 == 0 and position // 2 in self._kept:
                self._held[position] = self._kept[position // 2]
            else:
                states = self._computed(position, halves)
                check_finite(states, f"in block {(position - 1) // 2}")
                self._held[position] = states
        return self._held[position]

    def _computed(self, position: int, halves: Halves | None) -> Tensor:
        kept = max(2 * boundary for boundary in self._kept if 2 * boundary < position)
        # from between two halves one gets on only to the end of that block, and only knowing the halves
        usable = (at for at in self._held if at < position and (at % 2 == 0 or (halves and at == position - 1)))
        start = max([kept, *usable])
        states = self._held[start] if start in self._held else self._kept[start // 2]
        while start < position:
            stop = min(start + 2 - start % 2, position)
            part = "block" if stop - start == 2 else ("mlp" if start % 2 else "attention")
            with self.network.block(start // 2) as block:
                states = run_states(
                    self.network, start // 2, block, part, halves, states, self._batch, self._folder
                )  # fmt: skip
            start = stop
        return states


class Prefix:
    """Hidden states ``[sequences, length, width]`` at the input of the next block, behind all blocks before it.

    For sequential flows: the states go through a network block by block as it changes.

    Args:
        states: at the first block's input.
        batch: sequences per forward pass.
        folder: where computed states are written.
    """

    def __init__(self, states: Tensor, batch: int, folder: Path) -> None:
        self._states, self._batch, self._folder = states, batch, folder

    def copy(self) -> Prefix:
        """A prefix of the same states; advancing one leaves the other as it is."""
        return Prefix(self._states, self._batch, self._folder)

    def statistics(self, network: Network, index: int, gram: bool) -> dict[str, Statistics]:
        """Statistics of the matrices of a network's block that reads these states, by full name."""
        with network.block(index) as block:
            collector = Collector(matrices(block), gram)
            with collector.watching():
                forward(network, index, block, "block", None, self._states, None, self._batch)
        return {f"{network.block_name(index)}.{name}": found for name, found in collector.results().items()}

    def advance(self, network: Network, index: int) -> None:
        """Go through a network's block.

        Raises:
            FreelunchError: a state behind it is NaN or infinite.
        """
        with network.block(index) as block:
            states = run_states(network, index, block, "block", None, self._states, self._batch, self._folder)
        check_finite(states, f"states behind the pruned block {index}")
        self._states = states
