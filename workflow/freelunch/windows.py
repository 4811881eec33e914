"""Windows: which stretch of the network is trained at a time.

Depth is measured in half-blocks: position ``2 b`` is the input of block ``b``, ``2 b + 1`` lies between its attention
half and its MLP half, and ``2 B`` is the output of the last of ``B`` blocks. A window is a pair of positions; its
input and its target are the dense activations there (paper, "block size": 1/2 is ``attention_mlp``, k is k blocks).
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import FreelunchError

NAMES = ("attention_mlp", "block")


@dataclass(frozen=True)
class Window:
    """Half-blocks ``start`` (included) to ``stop`` (excluded)."""

    index: int
    start: int
    stop: int

    @property
    def blocks(self) -> range:
        """Indices of the blocks the window touches."""
        return range(self.start // 2, (self.stop + 1) // 2)

    def part(self, block: int) -> str:
        """Which part of ``block`` lies in the window: ``attention``, ``mlp`` or ``block``."""
        if self.start > 2 * block:
            return "mlp"
        return "attention" if self.stop < 2 * block + 2 else "block"

    @property
    def name(self) -> str:
        """``7.attention``, ``7.mlp``, ``7`` or ``7-9``: blocks counted from 0."""
        first, last = self.blocks[0], self.blocks[-1]
        if first != last:
            return f"{first}-{last}"
        part = self.part(first)
        return f"{first}" if part == "block" else f"{first}.{part}"


def parse_window(text: object) -> int:
    """Half-blocks per window of ``attention_mlp`` (1), ``block`` (2) or an integer k of blocks (2 k).

    Raises:
        FreelunchError: the text names no window.
    """
    if text == "attention_mlp":
        return 1
    if text == "block":
        return 2
    if isinstance(text, int) and not isinstance(text, bool) and text >= 2:
        return 2 * text
    raise FreelunchError(f"{text!r} is not a window; allowed: attention_mlp, block, or a number of blocks from 2 up")


def tile(window: str | int, blocks: int) -> list[Window]:
    """Cut a network of ``blocks`` blocks into consecutive windows; the last of k blocks may be shorter.

    Raises:
        FreelunchError: the window is larger than the network.
    """
    size, depth = parse_window(window), 2 * blocks
    if size > depth:
        raise FreelunchError(f"a window of {size // 2} blocks is larger than the model, which has {blocks}")
    return [Window(i, start, min(start + size, depth)) for i, start in enumerate(range(0, depth, size))]
