"""Structured units: attention heads and MLP channels, as rows of the matrices that make them and columns of the one
that reads them.

Where they lie is read from the order of calls and the shapes, without code per family: a block calls matrices that
share one input (q, k, v), one that reads what became of their outputs (o), and the same again for the MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .criteria.criterion import Criterion
from .errors import FreelunchError
from .matrix import Matrix
from .patterns import rounded


@dataclass(frozen=True)
class Heads:
    """Shape of an attention: what tells its heads apart."""

    query: int
    key_value: int
    width: int


@dataclass(frozen=True)
class Units:
    """The units of one kind in one block.

    Attributes:
        kind: ``heads`` or ``channels``.
        count: how many there are.
        width: columns of the consumer, and rows of a producer, that one takes.
        consumer: the matrix that reads them.
        producers: the matrices that make them, each with the number of units that share its rows: with grouped
            queries the rows of a key or value head serve several query heads, and go when all of those do.
    """

    kind: str
    count: int
    width: int
    consumer: str
    producers: Mapping[str, int]

    def scores(self, consumer: Tensor) -> Tensor:
        """Score of every unit: the mean over rows, and the sum over its columns, of the consumer's scores."""
        return consumer.mean(0).reshape(self.count, self.width).sum(1)

    def masks(self, kept: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Boolean masks of all its matrices from ``kept`` ``[count]``."""
        columns = kept.repeat_interleave(self.width)
        found = {self.consumer: columns.expand(shapes[self.consumer]).clone()}
        for name, group in self.producers.items():
            rows = kept.reshape(-1, group).any(1).repeat_interleave(self.width)
            found[name] = rows.unsqueeze(1).expand(shapes[name]).clone()
        return found

    def cost(self, shapes: Mapping[str, tuple[int, ...]]) -> float:
        """Weights that a unit takes, its share of what it has in common with others included."""
        producers = sum(shapes[name][1] * self.width / group for name, group in self.producers.items())
        return producers + shapes[self.consumer][0] * self.width


def find_units(leaders: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], heads: Heads) -> list[Units]:
    """The heads and the channels of a block.

    Args:
        leaders: for every matrix of the block, in the order of their calls, the first that reads the same input.
        shapes: of the matrices.

    Raises:
        FreelunchError: the matrices are not those of an attention followed by an MLP (fused projections, say).
    """
    groups: dict[str, list[str]] = {}
    for name, leader in leaders.items():
        groups.setdefault(leader, []).append(name)
    parts = list(groups.values())
    if len(parts) != 4 or len(parts[1]) != 1 or len(parts[3]) != 1:
        raise FreelunchError(f"structured patterns need q, k, v and o, then an MLP; found {_listed(parts)}")
    rows = heads.query * heads.width, heads.key_value * heads.width
    channels = shapes[parts[3][0]][1]
    fits = shapes[parts[1][0]][1] == rows[0] and all(shapes[name][0] in rows for name in parts[0])
    if not fits or any(shapes[name][0] != channels for name in parts[2]):
        raise FreelunchError(
            f"structured patterns need projections of one kind each; the shapes of {_listed(parts)} are not those of "
            f"{heads.query} heads, {heads.key_value} key-value heads and one MLP (they may be fused)"
        )
    sharing = {name: rows[0] // shapes[name][0] for name in parts[0]}
    return [
        Units("heads", heads.query, heads.width, parts[1][0], sharing),
        Units("channels", channels, 1, parts[3][0], dict.fromkeys(parts[2], 1)),
    ]


class Structure:
    """Which heads and channels of a network stay: so many of every block, or those above one threshold.

    Args:
        units: of every block.
        shapes: of all matrices.
        sparsity: share of the units that each block loses; of the weights of all, for one threshold.
        load: gives the dense matrices, to find the threshold; without it every block is looked at alone.
    """

    def __init__(
        self, criterion: Criterion, units: Mapping[int, list[Units]], shapes: Mapping[str, tuple[int, ...]],
        sparsity: Mapping[int, float], load: Callable[[str], Matrix] | None = None,
    ) -> None:  # fmt: skip
        self._criterion, self._units, self._shapes, self._sparsity = criterion, units, shapes, sparsity
        self._kept: dict[str, Tensor] = {}
        if load is not None:
            flat = [each for block in units.values() for each in block]
            scores = [self._scores(each, load) for each in flat]
            mean = sum(sparsity.values()) / len(sparsity)
            kept = keep_in_model(scores, [each.cost(shapes) for each in flat], mean)
            self._kept = {each.consumer: found for each, found in zip(flat, kept, strict=True)}

    def masks(self, block: int, load: Callable[[str], Matrix]) -> dict[str, Tensor]:
        """Boolean masks of all matrices of a block, whose inputs ``load`` knows."""
        found: dict[str, Tensor] = {}
        for each in self._units[block]:
            kept = self._kept.get(each.consumer)
            if kept is None:
                kept = keep_in_block(self._scores(each, load), self._sparsity[block])
            found |= each.masks(kept, self._shapes)
        return found

    def _scores(self, units: Units, load: Callable[[str], Matrix]) -> Tensor:
        return units.scores(self._criterion.scores(load(units.consumer))).cpu()


def keep_in_block(scores: Tensor, sparsity: float) -> Tensor:
    """Which units of one kind in one block stay: all but the share with the lowest scores, and one in any case."""
    dropped = min(rounded(sparsity, len(scores)), len(scores) - 1)
    kept = torch.ones_like(scores, dtype=torch.bool)
    kept[scores.sort(stable=True).indices[:dropped]] = False
    return kept


def keep_in_model(scores: Sequence[Tensor], costs: Sequence[float], sparsity: float) -> list[Tensor]:
    """Which units stay, over all kinds and blocks: one threshold on scores standardised within each.

    The number of units dropped is the one that brings their weights (``costs`` each) nearest to ``sparsity`` of all
    (FLAP, An et al. 2023, arXiv 2312.11983). The last unit of a kind in a block is never dropped.
    """
    standard = [_standardised(each.double()) for each in scores]
    for each in standard:
        each[each.argmax()] = torch.inf
    flat = torch.cat(standard)
    counts = torch.tensor([len(each) for each in scores])
    weights = torch.tensor(costs, dtype=torch.float64).repeat_interleave(counts)
    order = flat.sort(stable=True).indices
    removed = torch.cat([weights.new_zeros(1), weights[order].cumsum(0)])
    dropped = int((removed - sparsity * weights.sum()).abs().argmin())
    kept = torch.ones_like(flat, dtype=torch.bool)
    kept[order[:dropped]] = False
    return list((kept | flat.isinf()).split(counts.tolist()))


def _standardised(scores: Tensor) -> Tensor:
    return (scores - scores.mean()) / scores.std().clamp(min=1e-12) if len(scores) > 1 else torch.zeros_like(scores)


def _listed(parts: list[list[str]]) -> str:
    return " -> ".join("/".join(name.rsplit(".", 1)[-1] for name in part) for part in parts)
