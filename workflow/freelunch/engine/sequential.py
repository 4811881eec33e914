"""Sequential flows: hidden states that go through a network block by block as it changes."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from freelunch.engine.activations import check_finite, forward, run_states
from freelunch.engine.blocks import matrices
from freelunch.engine.streaming import Network
from freelunch.prune.matrix import Statistics
from freelunch.prune.statistics import Collector


class Prefix:
    """Hidden states ``[sequences, length, width]`` at the input of the next block, behind all blocks before it.

    Args:
        states: at the first block's input.
        batch: sequences per forward pass.
        folder: where states find room on disk.
    """

    def __init__(self, states: Tensor, batch: int, folder: Path) -> None:
        self._states, self._batch, self._folder = states, batch, folder

    def copy(self) -> Prefix:
        """The same place; moving one on leaves the other where it is."""
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
