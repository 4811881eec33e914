"""Windows: which stretch of the network is trained at a time.

Depth is measured in half-blocks: position ``2 b`` is the input of block ``b``, ``2 b + 1`` lies between its attention
half and its MLP half, and ``2 B`` is the output of the last of ``B`` blocks. A window of half-blocks is a pair of
positions (paper, "block size": 1/2 is ``attention_mlp``, k is k blocks, ``model`` all). Windows of single matrices lie
within a block: ``matrix`` and ``matrix_exact`` take each for itself, ``key_up`` trains the key and the up projection
together, from the block's input to what the up projection gives, across the nonlinear attention between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from freelunch.errors import FreelunchError, suggest

MATRICES = ("matrix", "matrix_exact", "key_up")
NAMES = (*MATRICES, "attention_mlp", "block", "model")


@dataclass(frozen=True)
class Window:
    """Half-blocks ``start`` (included) to ``stop`` (excluded), or some matrices of one block."""

    index: int
    start: int
    stop: int
    matrices: tuple[str, ...] = ()
    """Names within the block, in the order of calls; the target is what the last of them gives."""

    @property
    def blocks(self) -> range:
        """Indices of the blocks the window touches."""
        return range(self.start // 2, (self.stop + 1) // 2)

    def part(self, block: int) -> str:
        """Which part of ``block`` lies in the window: ``attention``, ``mlp``, ``block`` or ``matrices``."""
        if self.matrices:
            return "matrices"
        if self.start > 2 * block:
            return "mlp"
        return "attention" if self.stop < 2 * block + 2 else "block"

    @property
    def name(self) -> str:
        """``7.attention``, ``7.mlp``, ``7``, ``7-9``, ``7.self_attn.q_proj`` or ``7.key_up``: counted from 0."""
        first, last = self.blocks[0], self.blocks[-1]
        if self.matrices:
            return f"{first}.{self.matrices[0] if len(self.matrices) == 1 else 'key_up'}"
        if first != last:
            return f"{first}-{last}"
        part = self.part(first)
        return f"{first}" if part == "block" else f"{first}.{part}"


@dataclass(frozen=True)
class BlockMatrices:
    """The matrices of a block by name, in the order of calls, and which of them make keys and the MLP's channels."""

    names: tuple[str, ...]
    key: str = ""
    up: str = ""


def parse_window(text: object) -> int | None:
    """Half-blocks per window: 1 of ``attention_mlp``, 2 of ``block``, 2 k of an integer k of blocks, None of others."""
    if text == "attention_mlp":
        return 1
    if text == "block":
        return 2
    if text in ("model", *MATRICES):
        return None
    if isinstance(text, int) and not isinstance(text, bool) and text >= 2:
        return 2 * text
    raise FreelunchError(f"{text!r} is not a window; allowed: {', '.join(NAMES)}, or a number of blocks from 2 up")


def check_window(window: str | int, blocks: int) -> None:
    """Refuse a window that is larger than a network of ``blocks`` blocks."""
    size = parse_window(window)
    if size is not None and size > 2 * blocks:
        raise FreelunchError(f"a window of {size // 2} blocks is larger than the model, which has {blocks}")


def tile(window: str | int, blocks: int, inside: Sequence[BlockMatrices] = (), targets: str = "all") -> list[Window]:
    """Cut a network of ``blocks`` blocks into consecutive windows; the last of k blocks may be shorter.

    Windows of matrices need those ``inside`` of every block; of one matrix, those are left out that are no ``targets``.
    """
    check_window(window, blocks)
    if window == "key_up":
        return [Window(i, 2 * i, 2 * i + 2, (block.key, block.up)) for i, block in enumerate(inside)]
    if window in MATRICES:
        each = [(i, name) for i, block in enumerate(inside) for name in block.names if targeted(name, targets)]
        return [Window(index, 2 * i, 2 * i + 2, (name,)) for index, (i, name) in enumerate(each)]
    depth = 2 * blocks
    size = parse_window(window) or depth
    return [Window(i, start, min(start + size, depth)) for i, start in enumerate(range(0, depth, size))]


def completed(windows: Sequence[Window], at: int) -> list[int]:
    """Blocks whose last window is ``windows[at]``."""
    later = windows[at + 1].blocks if at + 1 < len(windows) else range(0)
    return [block for block in windows[at].blocks if block not in later]


def boundaries_to_keep(blocks: int, bytes_each: int, budget: int) -> list[int]:
    """Block boundaries ``0 .. blocks`` to keep within a budget in bytes: all, or an even spread with both ends.

    Both ends are kept whatever the budget: without them no block has its inputs and targets.
    """
    count = min(max(2, budget // bytes_each), blocks + 1) if bytes_each else blocks + 1
    return sorted({round(i * blocks / (count - 1)) for i in range(count)})


def canonical_targets(text: object) -> str:
    """The one way targets are written: ``all``, or the last parts of matrices' names, joined by ``+``."""
    names = [part.strip() for part in text.split("+")] if isinstance(text, str) else []
    if not names or not all(name.isidentifier() for name in names) or ("all" in names and len(names) > 1):
        raise FreelunchError(f"{text!r} names no matrices; write all, or names joined by + such as q_proj + v_proj")
    return " + ".join(sorted(set(names)))


def check_targets(names: Iterable[str], targets: str) -> None:
    """Refuse targets that are not among the matrices of a model."""
    known = {name.rsplit(".", 1)[-1] for name in names}
    for target in targets.split(" + ") if targets != "all" else []:
        if target not in known:
            raise FreelunchError(f"targets: there is no matrix {target!r}; {suggest(target, known)}")


def targeted(name: str, targets: str) -> bool:
    """Whether a matrix of that name is among the targets."""
    return targets == "all" or name.rsplit(".", 1)[-1] in targets.split(" + ")
