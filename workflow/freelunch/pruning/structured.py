"""Structured units: attention heads and MLP channels, as rows of the matrices that make them and columns of the one
that reads them.

Where they lie is read from the order of calls and the shapes, without code per family: a block calls matrices that
share one input (q, k, v), one that reads what became of their outputs (o), and the same again for the MLP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from freelunch.errors import FreelunchError


@dataclass(frozen=True)
class Heads:
    """Numbers of query heads and of key-value heads of an attention, and their width."""

    query: int
    key_value: int
    width: int


@dataclass(frozen=True)
class Units:
    """The units of one kind in one block.

    Attributes:
        kind: ``heads`` or ``channels``; ``count`` of them.
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

    def standardised(self, consumer: Tensor) -> Tensor:
        """Score of every unit, comparable between kinds and blocks: the mean of its columns' standard scores (FLAP)."""
        columns = consumer.double().mean(0)
        spread = columns.std() if len(columns) > 1 else columns.new_zeros(())
        columns = (columns - columns.mean()) / spread.clamp(min=1e-300)
        return columns.reshape(self.count, self.width).mean(1)

    def masks(self, kept: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Boolean masks of all its matrices from ``kept`` ``[count]``."""
        columns = kept.repeat_interleave(self.width)
        masks = {self.consumer: columns.expand(shapes[self.consumer]).clone()}
        for name, group in self.producers.items():
            rows = kept.reshape(-1, group).any(1).repeat_interleave(self.width)
            masks[name] = rows.unsqueeze(1).expand(shapes[name]).clone()
        return masks

    def costs(self, rank: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> Tensor:
        """Weights that become zero with each unit ``[count]``, if units go in the order of ``rank``.

        What a group shares becomes zero with the last of it.
        """
        alone = [name for name, group in self.producers.items() if group == 1]
        own = self.width * (shapes[self.consumer][0] + sum(shapes[name][1] for name in alone))
        costs = torch.full((self.count,), float(own), dtype=torch.float64)
        for name, group in self.producers.items():
            if group > 1:
                last = rank.reshape(-1, group).argmax(1) + torch.arange(0, self.count, group)
                costs[last] += self.width * shapes[name][1]
        return costs


def grouped(leaders: Mapping[str, str]) -> list[list[str]]:
    """Matrices by the input they share, in the order of calls."""
    groups: dict[str, list[str]] = {}
    for name, leader in leaders.items():
        groups.setdefault(leader, []).append(name)
    return list(groups.values())


def find_units(leaders: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], heads: Heads) -> list[Units]:
    """The heads and the channels of a block.

    Args:
        leaders: for every matrix of the block, in the order of their calls, the first that reads the same input.
        shapes: of the matrices.

    Raises:
        FreelunchError: the matrices are not those of an attention followed by an MLP (fused projections, say).
    """
    parts = grouped(leaders)
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


def keep_highest(scores: Tensor, dropped: int) -> Tensor:
    """Which units stay: all but the ``dropped`` with the lowest scores, ties by position."""
    kept = torch.ones_like(scores, dtype=torch.bool)
    kept[scores.sort(stable=True).indices[:dropped]] = False
    return kept


def keep_in_model(
    units: Sequence[Units], scores: Sequence[Tensor], shapes: Mapping[str, tuple[int, ...]], sparsity: float
) -> dict[str, Tensor]:
    """Which units stay, over all kinds and blocks, by the matrix that reads them: one threshold on comparable scores.

    The number of units dropped is the one that brings the weights that become zero nearest to ``sparsity`` of all
    (FLAP, An et al. 2023, arXiv 2312.11983). The last unit of a kind in a block is never dropped.
    """
    lengths = [each.count for each in units]
    # the last of each is out of reach
    reachable = [each.double().index_fill(0, each.argmax(), torch.inf) for each in scores]
    flat = torch.cat(reachable)
    order = flat.sort(stable=True).indices
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    weights = torch.cat([each.costs(at, shapes) for each, at in zip(units, rank.split(lengths), strict=True)])
    removed = torch.cat([weights.new_zeros(1), weights[order].cumsum(0)])
    dropped = int((removed - sparsity * weights.sum()).abs().argmin())
    kept = (rank >= dropped) | flat.isinf()
    return {each.consumer: found for each, found in zip(units, kept.split(lengths), strict=True)}


def _listed(parts: list[list[str]]) -> str:
    return " -> ".join("/".join(name.rsplit(".", 1)[-1] for name in part) for part in parts)
