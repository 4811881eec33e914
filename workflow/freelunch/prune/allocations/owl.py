"""OWL: blocks with many outliers are pruned less."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from freelunch.prune.allocations.allocation import Allocation
from freelunch.prune.matrix import Matrices
from freelunch.prune.methods import positive

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class OWL(Allocation):
    """Outlier-weighed layerwise sparsity (Yin et al. 2024, arXiv 2310.05175).

    The outlier ratio ``D`` of a block is the share of its weights with ``|W_ij| ||X_j||`` above ``outlier`` times the
    block's mean. Densities are ``D`` stretched to a range of ``2 lambda`` around the pattern's density.
    """

    by_block: ClassVar[bool] = True
    lambda_: float = 0.08
    outlier: float = 5.0

    def __post_init__(self) -> None:
        positive(lambda_=self.lambda_, outlier=self.outlier)

    def targets(self, matrices: Matrices, pruned: float) -> Mapping[str, float]:
        sizes = matrices.sizes
        ratios = self._ratios(matrices)
        low, high = min(ratios.values()), max(ratios.values())
        stretch = 2 * self.lambda_ / (high - low) if high > low else 0.0
        raised = {block: (ratio - low) * stretch for block, ratio in ratios.items()}
        total = sum(sizes.values())
        mean = sum(raised[matrices.blocks[name]] * size for name, size in sizes.items()) / total
        sparsity = pruned / total
        return {name: (sparsity + mean - raised[matrices.blocks[name]]) * size for name, size in sizes.items()}

    def _ratios(self, matrices: Matrices) -> dict[int, float]:
        """Outlier ratio of every block: one pass for the block's mean, one to count."""
        ratios: dict[int, float] = {}
        for block in dict.fromkeys(matrices.blocks.values()):
            names = [name for name in matrices.shapes if matrices.blocks[name] == block]
            size = sum(matrices.sizes[name] for name in names)
            mean = sum(float(self._scores(matrices, name).double().sum()) for name in names) / size
            above = sum(int((self._scores(matrices, name) > self.outlier * mean).sum()) for name in names)
            ratios[block] = above / size
        return ratios

    def _scores(self, matrices: Matrices, name: str) -> Tensor:
        matrix = matrices.load(name)
        return matrix.weight.abs() * matrix.inputs.squared_norms.sqrt().to(matrix.weight)


method = OWL
