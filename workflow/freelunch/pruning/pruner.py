"""From statistics to a pruned network: how many weights each matrix loses, which ones, and what is done about it.

What is decided over all matrices is decided first, from the dense model; then one matrix is looked at at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from freelunch.errors import FreelunchError, naming
from freelunch.pruning.allocations import Allocation, apportion
from freelunch.pruning.criteria import Criterion
from freelunch.pruning.matrix import Matrices, Matrix, Pruned, finite
from freelunch.pruning.patterns import NM, Structured, Unstructured
from freelunch.pruning.selection import count_lowest
from freelunch.pruning.structured import Heads, Units, find_units, keep_highest, keep_in_model

if TYPE_CHECKING:
    from freelunch.pruning.method import Method

Load = Callable[[str], Matrix]


class Pruner:
    """Prunes a network block by block.

    Args:
        matrices: of the dense model.
        leaders: by block, for every matrix in the order of calls, the first that reads the same input.
        heads: of its attention; structured patterns need it.

    Raises:
        FreelunchError: the pattern does not fit a matrix, or a score is not finite; names the matrix.
    """

    def __init__(
        self, method: Method, matrices: Matrices, leaders: Mapping[int, Mapping[str, str]], heads: Heads
    ) -> None:
        self._method, self._names = method, {block: list(inside) for block, inside in leaders.items()}
        self._shapes = matrices.shapes
        self._counts: dict[str, int] = {}
        """Weights that each matrix loses; of structured patterns, units that go, by the matrix that reads them."""
        self._units: dict[int, list[Units]] = {}
        self._kept: dict[str, Tensor] = {}
        """Which units stay, where that is found over the whole network."""
        with torch.no_grad():
            if isinstance(method.pattern, Structured):
                self._units = {block: find_units(inside, self._shapes, heads) for block, inside in leaders.items()}
                self._allocate_units(method.pattern, matrices)
            else:
                self._counts = allocate(method.criterion, method.pattern, method.allocation, matrices)

    def _allocate_units(self, pattern: Structured, matrices: Matrices) -> None:
        if pattern.group == "model":
            units = [each for block in self._units.values() for each in block]
            scores = [each.standardised(self._scores(matrices.load(each.consumer))).cpu() for each in units]
            self._kept = keep_in_model(units, scores, self._shapes, pattern.sparsity)
            return
        sizes = matrices.sizes
        targets = self._method.allocation.targets(matrices, pattern.sparsity * sum(sizes.values()))
        for kind in zip(*self._units.values(), strict=True):  # the heads of all blocks, then the channels of all
            counts = {each.consumer: each.count for each in kind}
            wanted = {name: targets[name] / sizes[name] * count for name, count in counts.items()}
            total = sum(pattern.pruned(count) for count in counts.values())
            self._counts |= apportion(wanted, counts, total, dict.fromkeys(counts, 1), keep=True)

    def _scores(self, matrix: Matrix) -> Tensor:
        return self._method.criterion.scores(matrix)

    def _structured_masks(self, block: int, load: Load) -> dict[str, Tensor]:
        """Boolean masks of all matrices of a block whose heads and channels are pruned."""
        masks: dict[str, Tensor] = {}
        for units in self._units.get(block, ()):
            kept = self._kept.get(units.consumer)
            if kept is None:
                scores = units.scores(self._scores(load(units.consumer))).cpu()
                kept = keep_highest(scores, self._counts[units.consumer])
            masks |= units.masks(kept, self._shapes)
        return masks

    @torch.no_grad()
    def block(self, index: int, load: Load) -> Iterator[tuple[Matrix, Pruned]]:
        """The pruned matrices of a block, one by one; ``load`` gives each with the statistics to prune by.

        Raises:
            FreelunchError: weights or scores are not finite, or a mask came out wrong; names the matrix.
        """
        masks = self._structured_masks(index, load)
        for name in self._names[index]:
            matrix = load(name)
            if not finite(matrix.weight):
                raise FreelunchError(f"{name}: the weights contain NaN or infinity")
            if name in masks:
                pruned = Pruned(masks[name].to(matrix.weight.device), matrix.weight, matrix.bias)
                yield matrix, refined(self._method, matrix, pruned)
            else:
                yield matrix, prune_matrix(self._method, matrix, self._counts[name])


def allocate(
    criterion: Criterion, pattern: Unstructured | NM, allocation: Allocation, matrices: Matrices
) -> dict[str, int]:
    """Weights that each matrix loses: in all exactly what the pattern asks for (mixed N:M: as near as N allows)."""
    for name, shape in matrices.shapes.items():
        pattern.check(shape[0], shape[1], name)
    sizes = matrices.sizes
    total = pattern.pruned(sum(sizes.values()))
    if isinstance(pattern, Unstructured) and pattern.group == "model":
        return count_lowest(lambda: ((matrix.name, criterion.scores(matrix)) for matrix in matrices), total)
    steps = {name: pattern.step(size) for name, size in sizes.items()}
    return apportion(allocation.targets(matrices, total), sizes, total, steps, keep=isinstance(pattern, NM))


@torch.no_grad()
def prune_matrix(method: Method, matrix: Matrix, pruned: int) -> Pruned:
    """Prune ``pruned`` weights of a matrix, and refine what is left; failures name the matrix."""
    assert not isinstance(method.pattern, Structured)
    rows, columns = matrix.weight.shape
    method.pattern.check(rows, columns, matrix.name)
    mask, weight = method.criterion.prune(matrix, method.pattern, pruned)
    result = refined(method, matrix, Pruned(mask, weight, matrix.bias))
    check_mask(matrix.name, result.mask, method.pattern, pruned)
    return result


def refined(method: Method, matrix: Matrix, pruned: Pruned) -> Pruned:
    """A pruned matrix after all refinements of a method."""
    with naming(matrix.name):
        for refinement in method.refinements:
            pruned = refinement.refine(matrix, pruned, method.pattern)
        if pruned.weight is not matrix.weight and not finite(pruned.weight):
            raise FreelunchError("the updated weights contain NaN or infinity")
    return pruned


def check_mask(name: str, mask: Tensor, pattern: Unstructured | NM, pruned: int) -> None:
    """Raise unless a mask prunes exactly so many weights, spread as its pattern says."""
    if not pattern.fits(mask, pruned):
        lost = mask.numel() - int(mask.sum())
        raise FreelunchError(f"{name}: {lost} weights pruned, {pruned} wanted, spread as {pattern} says")
