"""Flows: what a window is trained on. ``X`` is the dense state at its start, ``X̂`` the state behind the pruned
and recovered network before it, ``f`` the dense window.

| flow | input | target |
|---|---|---|
| ``dense`` | X | f(X) |
| ``sparse_local`` | X̂ | f(X̂) |
| ``sparse_dense`` | X̂ | f(X) |

Only in ``dense`` are windows independent of each other. ``official_matrix`` replicates what the official code does with
single matrices (``OfficialMatrix``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from freelunch.engine.blocks import Halves, find_halves
from freelunch.engine.states import States, caught_states, run_states, scratch, taken
from freelunch.engine.streaming import Network
from freelunch.engine.transfers import Downloads
from freelunch.recover.windows import Window

Pairs = dict[str, tuple[Tensor, Tensor]]
"""By split, inputs and targets, ``[sequences, length, width]`` each, memory-mapped."""


class DenseFlow:
    """X to f(X).

    Args:
        states: dense states of the splits ``calibration`` and ``validation``.
        student: the pruned network as it is recovered so far.
        embedded: states at the first block's input by split, for flows that go through the student.
        windows: all of them, in order.
        batch: sequences per forward pass.
        folder: where states find room on disk.
    """

    def __init__(
        self, states: dict[str, States], student: Network, embedded: dict[str, Tensor],
        windows: Sequence[Window], batch: int, folder: Path,
    ) -> None:  # fmt: skip
        self.states, self.student, self.embedded, self.windows = states, student, embedded, windows
        self.batch, self.folder = batch, folder
        self._halves: dict[int, Halves] = {}
        self.dense = states["calibration"].network
        self.sparse = {split: States(student, {0: hidden}, batch, folder) for split, hidden in embedded.items()}

    def pairs(self, window: Window) -> Pairs:
        """Inputs and targets of a window."""
        return {split: self.pair(split, window) for split in self.states}

    def pair(self, split: str, window: Window) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a window in a split."""
        walk = self._at(self.states, split, window)
        if window.matrices:
            inputs, outputs = self._caught(self.dense, window, walk.at(window.start))
            return walk.at(window.start) if len(window.matrices) > 1 else inputs, outputs
        return walk.at(window.start, self.cut(window, window.blocks[0])), walk.at(
            window.stop, self.cut(window, window.blocks[-1])
        )

    def leave(self, window: Window) -> None:
        """After a window was trained, now or in an earlier job, and the student has it."""

    def halves(self, block: int) -> Halves:
        """Where a block is cut."""
        if block not in self._halves:
            # any states do: where a block is cut does not depend on them
            hidden = self.dense.taken(self.states["calibration"].at(0)[:1])
            with self.dense.block(block) as module:
                self._halves = {block: find_halves(module, hidden, self.dense.calls(*hidden.shape[:2])[block])}
        return self._halves[block]

    def cut(self, window: Window, block: int) -> Halves | None:
        """Where a block of a window is cut, if the window holds half of it."""
        return self.halves(block) if window.part(block) in ("attention", "mlp") else None

    @staticmethod
    def _at(walks: dict[str, States], split: str, window: Window) -> States:
        start = 2 * window.blocks[0]
        walks[split].at(start)  # first, from what is held
        walks[split].drop_before(start)
        return walks[split]

    def _caught(self, network: Network, window: Window, states: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and outputs of a window's last matrix when its block is run on some states."""
        index = window.blocks[0]
        return caught_states(network, index, "block", None, window.matrices[-1], states, self.batch, self.folder)

    def _linear(self, window: Window, inputs: Tensor) -> Tensor:
        """What the dense matrix of a window gives."""
        index, name = window.blocks[0], window.matrices[0]
        with self.dense.block(index) as block:
            layer = block.get_submodule(name)
            room = scratch(self.folder, (*inputs.shape[:2], layer.get_parameter("weight").shape[0]), inputs.dtype)
            with torch.no_grad(), Downloads(self.dense.copies) as results:
                for rows, states in taken(self.dense, inputs, self.batch):
                    results.write(layer(states), room, rows)
        return room


class SparseLocal(DenseFlow):
    """X̂ to f(X̂): every window does what the dense one would, on what it will really be given."""

    def pair(self, split: str, window: Window) -> tuple[Tensor, Tensor]:
        walk = self._at(self.sparse, split, window)
        if len(window.matrices) == 1:
            inputs, _ = self._caught(self.student, window, walk.at(window.start))
            return inputs, self._linear(window, inputs)
        inputs = walk.at(window.start, self.cut(window, window.blocks[0]))
        if window.matrices:
            return inputs, self._caught(self.dense, window, inputs)[1]
        return inputs, self._run(window, inputs)

    def _run(self, window: Window, states: Tensor) -> Tensor:
        """What the dense window gives."""
        for index in window.blocks:
            part, cut = window.part(index), self.cut(window, index)
            with self.dense.block(index) as block:
                states = run_states(self.dense, index, block, part, cut, states, self.batch, self.folder)
        return states


class SparseDense(DenseFlow):
    """X̂ to f(X): every window also makes up for what the ones before it got wrong."""

    def pair(self, split: str, window: Window) -> tuple[Tensor, Tensor]:
        targets = super().pair(split, window)[1]
        walk = self._at(self.sparse, split, window)
        if len(window.matrices) == 1:
            return self._caught(self.student, window, walk.at(window.start))[0], targets
        return walk.at(window.start, self.cut(window, window.blocks[0])), targets


class OfficialMatrix(DenseFlow):
    """A replica of a defect in the official code's windows of one matrix (block size -2), to measure what it does.

    There the state that enters a half of a block loses its residual: what the last matrix of the half before gave is
    handed on alone, from the first MLP on. Besides, a matrix is given what the recovered matrices before it in its
    half make of that state, and its target is what the dense matrix makes of it. Read from ``prune_methods.py`` and
    ``utilities.py`` of github.com/ZIB-IOL/Free-Lunch-in-LLM-Compression at 2540c48, with its example's flags
    ``propagate_sparse_activations_reconstruct: false``; not known is with which flags the paper's numbers were made.
    """

    @cached_property
    def _streams(self) -> dict[str, Tensor]:
        return dict(self.embedded)

    def pair(self, split: str, window: Window) -> tuple[Tensor, Tensor]:
        index, matrix, stream = window.blocks[0], window.matrices[0], self._streams[split]
        part, cut = self._half(window), self.halves(index)
        inputs, _ = caught_states(self.student, index, part, cut, matrix, stream, self.batch, self.folder)
        return inputs, self._linear(window, inputs)

    def leave(self, window: Window) -> None:
        after = self.windows[window.index + 1 : window.index + 2]
        if not after or after[0].blocks != window.blocks or self._half(after[0]) != self._half(window):
            self._streams = {split: self.pair(split, window)[1] for split in self._streams}

    def _half(self, window: Window) -> str:
        """Which half of its block a matrix lies in."""
        return self.halves(window.blocks[0]).part(window.matrices[0])


FLOWS: dict[str, type[DenseFlow]] = {
    "dense": DenseFlow,
    "sparse_local": SparseLocal,
    "sparse_dense": SparseDense,
    "official_matrix": OfficialMatrix,
}
