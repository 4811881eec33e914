"""SparseGPT: prune column by column, and let the columns to come make up for every loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from freelunch.pruning.criteria import CRITERIA, Criterion
from freelunch.pruning.methods import positive
from freelunch.pruning.patterns import NM

if TYPE_CHECKING:
    from torch import Tensor

    from freelunch.pruning.matrix import Matrix
    from freelunch.pruning.patterns import Unstructured


@CRITERIA.register("sparsegpt")
@dataclass(frozen=True)
class SparseGPT(Criterion):
    """``S_ij = W_ij^2 / U_jj^2`` with ``U^T U = H^-1``, on weights updated on the way (Frantar & Alistarh 2023,
    arXiv 2301.00774, algorithm 1).

    ``H = X^T X`` gets ``damping`` times its mean diagonal. Masks are chosen ``block_size`` columns at a time (for N:M,
    at every group), each block losing its share of the count. Within a block each column is computed from the errors
    of those before it, which reads them once and writes nothing else; the columns behind the block are updated by one
    matrix product.
    """

    needs_gram: ClassVar[bool] = True
    changes_weights: ClassVar[bool] = True
    block_size: int = 128
    damping: float = 0.01

    def __post_init__(self) -> None:
        positive(block_size=self.block_size, damping=self.damping)

    def score(self, matrix: Matrix) -> Tensor:
        """Scores before anything is pruned."""
        return (self._alive(matrix) / self._factor(matrix).diagonal()).square()

    def prune(self, matrix: Matrix, pattern: Unstructured | NM, pruned: int) -> tuple[Tensor, Tensor]:
        import torch

        from freelunch.pruning.selection import drop_lowest

        scores = self.scores(matrix)
        factor = self._factor(matrix)
        # transposed: a column of the matrix is contiguous
        weight = self._alive(matrix).T.clone(memory_format=torch.contiguous_format)
        columns, rows = weight.shape
        kept = torch.ones_like(weight, dtype=torch.bool)
        size = self.block_size
        if isinstance(pattern, NM):
            size = max(pattern.of, size // pattern.of * pattern.of)
            per_group = pattern.per_group(weight.numel(), pruned)
        else:
            quotas = pattern.quotas(scores, pruned)
        errors = weight.new_empty(min(size, columns), rows)

        for start in range(0, columns, size):
            stop = min(start + size, columns)
            block, chosen = weight[start:stop], kept[start:stop]
            local = factor[start:stop, start:stop]
            diagonal = local.diagonal().unsqueeze(1)
            scale = torch.empty_like(block)  # 1 / U_jj where pruned, else 0
            if not isinstance(pattern, NM):
                scores = (block / diagonal).square()
                chosen.copy_(_without_lowest(scores, quotas * stop // columns - quotas * start // columns))
                torch.div(~chosen, diagonal, out=scale)
            # views are made once: there is little else to do per column
            loop = zip(block.unbind(), errors.unbind(), scale.unbind(), local.T.contiguous().unbind(), strict=False)
            for j, (column, error, pruned_scale, before) in enumerate(loop):
                if isinstance(pattern, NM) and j % pattern.of == 0:
                    group = slice(j, j + pattern.of)
                    current = block[group] - local[:j, group].T @ errors[:j]  # what these columns would be by now
                    scores = (current / diagonal[group]).square()
                    chosen[group] = drop_lowest(scores.T, per_group).T
                    torch.div(~chosen[group], diagonal[group], out=scale[group])
                if j:
                    column.addmv_(errors[:j].T, before[:j], alpha=-1)
                torch.mul(column, pruned_scale, out=error)
            if stop < columns:
                weight[stop:].addmm_(factor[start:stop, stop:].T, errors[: stop - start], alpha=-1)
        return kept.T.contiguous(), (weight * kept).T.contiguous()

    def _alive(self, matrix: Matrix) -> Tensor:
        """The weights, zero where an input was never other than zero."""
        return matrix.weight * (matrix.inputs.squared_norms > 0).to(matrix.weight)

    def _factor(self, matrix: Matrix) -> Tensor:
        from freelunch.pruning.hessian import inverse_factor

        return inverse_factor(matrix.inputs, self.damping)


def _without_lowest(scores: Tensor, share: Tensor) -> Tensor:
    """Mask of transposed ``scores`` ``[columns, rows]`` without the lowest ``share`` of each row, or of all."""
    from freelunch.pruning.selection import drop_lowest

    if len(share) == 1:
        return drop_lowest(scores.T.reshape(1, -1), int(share)).reshape(scores.shape[::-1]).T
    return drop_lowest(scores.T, share).T
