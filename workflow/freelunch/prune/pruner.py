"""From statistics to a pruned network: how many weights each matrix loses, which ones, and what is done about it.

What is decided over all matrices is decided first, from the dense model; then one matrix is looked at at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from freelunch.errors import FreelunchError, naming
from freelunch.prune.allocations import Allocation, apportion
from freelunch.prune.criteria import Criterion
from freelunch.prune.matrix import Matrices, Matrix, Pruned, finite
from freelunch.prune.patterns import NM, Structured, Unstructured
from freelunch.prune.selection import count_lowest
from freelunch.prune.structured import Heads, Structure, find_units, keep_in_model

if TYPE_CHECKING:
    from freelunch.prune.method import Method

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
        self._counts: dict[str, int] = {}
        self._structure: Structure | None = None
        pattern = method.pattern
        with torch.no_grad():
            if not isinstance(pattern, Structured):
                self._counts = allocate(method.criterion, pattern, method.allocation, matrices)
                return
            self._structure = self._structured(pattern, matrices, leaders, heads)

    def _structured(
        self, pattern: Structured, matrices: Matrices, leaders: Mapping[int, Mapping[str, str]], heads: Heads
    ) -> Structure:
        criterion, shapes = self._method.criterion, matrices.shapes
        units = {block: find_units(inside, shapes, heads) for block, inside in leaders.items()}
        if pattern.group == "model":
            flat = [each for block in units.values() for each in block]
            scores = [each.standardised(criterion.scores(matrices.load(each.consumer))).cpu() for each in flat]
            return Structure(criterion, units, shapes, {}, keep_in_model(flat, scores, shapes, pattern.sparsity))
        targets = self._method.allocation.targets(matrices, pattern.sparsity * sum(matrices.sizes.values()))
        dropped: dict[str, int] = {}
        for kind in zip(*units.values(), strict=True):  # the heads of all blocks, then the channels of all
            sizes = {each.consumer: each.count for each in kind}
            wanted = {name: targets[name] / matrices.sizes[name] * count for name, count in sizes.items()}
            total = sum(pattern.pruned(count) for count in sizes.values())
            dropped |= apportion(wanted, sizes, total, dict.fromkeys(sizes, 1), keep=True)
        return Structure(criterion, units, shapes, dropped, {})

    @torch.no_grad()
    def block(self, index: int, load: Load) -> Iterator[tuple[Matrix, Pruned]]:
        """The pruned matrices of a block, one by one; ``load`` gives each with the statistics to prune by.

        Raises:
            FreelunchError: weights or scores are not finite, or a mask came out wrong; names the matrix.
        """
        masks = self._structure.masks(index, load) if self._structure is not None else {}
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
    """Weights that each matrix loses: in all exactly what the pattern asks for (mixed N:M: as near as N allows).

    Raises:
        FreelunchError: the pattern does not fit a matrix; names it.
    """
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
    """Prune ``pruned`` weights of a matrix, and refine what is left.

    Raises:
        FreelunchError: the pattern does not fit, scores are not finite, or the mask came out wrong; names the matrix.
    """
    assert not isinstance(method.pattern, Structured)
    rows, columns = matrix.weight.shape
    method.pattern.check(rows, columns, matrix.name)
    mask, weight = method.criterion.prune(matrix, method.pattern, pruned)
    found = refined(method, matrix, Pruned(mask, weight, matrix.bias))
    check_mask(matrix.name, found.mask, method.pattern, pruned)
    return found


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
        found = mask.numel() - int(mask.sum())
        raise FreelunchError(f"{name}: {found} weights pruned, {pruned} wanted, spread as {pattern} says")


def relative_error(matrix: Matrix, pruned: Pruned) -> float:
    """``||X (W - V)^T||^2 / ||X W^T||^2`` of a pruned matrix ``V``, from the Gram matrix of the inputs.

    A change of the bias is left out.
    """
    gram = matrix.inputs.gram
    assert gram is not None
    lost = matrix.weight - pruned.weight * pruned.mask
    errors, outputs = ((((each @ gram.to(each)) * each).sum()).double() for each in (lost, matrix.weight))
    return float(errors / outputs) if float(outputs) > 0 else 0.0
