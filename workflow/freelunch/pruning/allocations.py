"""Allocations: how a sparsity is spread over matrices. The real numbers they give become whole weights here.

To add one, register a class here under its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from freelunch.errors import FreelunchError
from freelunch.pruning.methods import Methods, positive
from freelunch.pruning.patterns import NM, Pattern

if TYPE_CHECKING:
    from torch import Tensor

    from freelunch.pruning.matrix import Matrices, Matrix

_TOLERANCE = 0.0005
"""How far the mean of given sparsities may be from the pattern's: they may be rounded to tenths of a percent."""


@dataclass(frozen=True)
class Allocation:
    """Says how many weights each matrix should lose. Fields are settings, written ``name(field=value)``."""

    by_block: ClassVar[bool] = False
    """Whether all matrices of a block get the same sparsity, so that structured patterns can follow it."""
    needs_gram: ClassVar[bool] = False
    """Whether it looks at Gram matrices of the dense model's inputs."""

    def targets(self, matrices: Matrices, pruned: float) -> Mapping[str, float]:
        """Weights to prune of every matrix, ``pruned`` in all; need not be whole numbers, nor add up exactly."""
        raise NotImplementedError

    def check(self, blocks: int, pattern: Pattern) -> None:
        """Raise if it does not go with a pattern in a network of so many blocks; before anything is loaded."""


ALLOCATIONS: Methods[Allocation] = Methods("allocation")
parse_allocation = ALLOCATIONS.parse
"""The allocation that a text such as ``uniform`` or ``owl(lambda=0.08)`` stands for."""


@ALLOCATIONS.register("uniform")
@dataclass(frozen=True)
class Uniform(Allocation):
    """The pattern's own sparsity everywhere."""

    by_block: ClassVar[bool] = True

    def targets(self, matrices: Matrices, pruned: float) -> Mapping[str, float]:
        total = sum(matrices.sizes.values())
        return {name: pruned * size / total for name, size in matrices.sizes.items()}


@ALLOCATIONS.register("given")
@dataclass(frozen=True)
class Given(Allocation):
    """``given(40%, 45%, 65%)``: the sparsity of each block in turn. Their mean is the pattern's sparsity."""

    by_block: ClassVar[bool] = True
    sparsities: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for sparsity in self.sparsities:
            if not 0 <= sparsity < 1:
                raise FreelunchError(f"a sparsity must be at least 0% and below 100%, not {100 * sparsity:g}%")

    def check(self, blocks: int, pattern: Pattern) -> None:
        if len(self.sparsities) != blocks:
            raise FreelunchError(f"it lists {len(self.sparsities)} sparsities, the model has {blocks} blocks")
        mean, wanted = sum(self.sparsities) / blocks, pattern.sparsity
        if abs(mean - wanted) > _TOLERANCE:
            raise FreelunchError(f"its sparsities have the mean {100 * mean:.4g}%, the pattern {100 * wanted:.4g}%")
        if isinstance(pattern, NM):
            for sparsity in self.sparsities:
                dropped = sparsity * pattern.of
                if abs(dropped - round(dropped)) > 1e-6 or round(dropped) == pattern.of:
                    raise FreelunchError(
                        f"{100 * sparsity:.4g}% of every {pattern.of} inputs is no whole number to prune"
                    )

    def targets(self, matrices: Matrices, pruned: float) -> Mapping[str, float]:
        order = list(dict.fromkeys(matrices.blocks.values()))
        sparsities = dict(zip(order, self.sparsities, strict=True))
        return {name: sparsities[matrices.blocks[name]] * size for name, size in matrices.sizes.items()}


@ALLOCATIONS.register("erk")
@dataclass(frozen=True)
class ERK(Allocation):
    """Erdős–Rényi kernel: kept weights in proportion to ``rows + columns`` (for convolutions all four sides; Evci et
    al. 2020, arXiv 1911.11134).

    A matrix that would keep more than it has stays dense, the one that overflows most first, and the rest is
    redistributed. ``cap`` bounds the density of every matrix instead of 1.
    """

    cap: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.cap <= 1:
            raise FreelunchError(f"cap is a density, above 0 and at most 1, not {self.cap:g}")

    def check(self, blocks: int, pattern: Pattern) -> None:
        kept = 1 - pattern.sparsity
        if kept > self.cap:
            raise FreelunchError(f"no matrix may keep more than {self.cap:.4g}, but {kept:.4g} must be kept")

    def targets(self, matrices: Matrices, pruned: float) -> Mapping[str, float]:
        return _in_proportion({name: sum(shape) for name, shape in matrices.shapes.items()}, matrices, pruned, self.cap)


@ALLOCATIONS.register("lamp")
@dataclass(frozen=True)
class LAMP(Allocation):
    """Layer-adaptive magnitude pruning (Lee et al. 2021, arXiv 2010.07611).

    Sorted by magnitude, the score of a weight is ``W_u^2 / sum of W_v^2 over v >= u``; the lowest of all matrices go.
    Only how many that are in each matrix is used here; which ones is the criterion's.
    """

    def targets(self, matrices: Matrices, pruned: float) -> Mapping[str, float]:
        from freelunch.pruning.selection import count_lowest

        return count_lowest(lambda: ((matrix.name, lamp_scores(matrix.weight)) for matrix in matrices), int(pruned))


def lamp_scores(weight: Tensor) -> Tensor:
    """LAMP scores of a weight tensor, in ascending order of its magnitudes."""
    # summed up on the CPU: a GPU adds in another order every time, and scores decide what is pruned
    squares = weight.flatten().double().square().sort().values.cpu()
    return squares / squares.flip(0).cumsum(0).flip(0).clamp(min=1e-300)


@ALLOCATIONS.register("owl")
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


@ALLOCATIONS.register("repairability")
@dataclass(frozen=True)
class Repairability(Allocation):
    """Densities in proportion to relative repairability, after arXiv 2605.25508 (its abstract alone is public): where
    channelwise scales undo little of what pruning does, more weights stay.

    The residual over the raw distortion of a matrix' outputs is measured with its smallest weights pruned, as many as a
    uniform allocation would; a density is at most 1, and what a matrix cannot take is redistributed. That densities are
    proportional to the ratio is this package's reading: the abstract says that it guides the allocation, not how.
    """

    needs_gram: ClassVar[bool] = True

    def targets(self, matrices: Matrices, pruned: float) -> Mapping[str, float]:
        sizes = matrices.sizes
        sparsity = pruned / sum(sizes.values())
        scores = {matrix.name: sizes[matrix.name] * self._ratio(matrix, sparsity) for matrix in matrices}
        return _in_proportion(scores, matrices, pruned, 1.0)

    @staticmethod
    def _ratio(matrix: Matrix, sparsity: float) -> float:
        from freelunch.pruning.hessian import moments, relative_repairability
        from freelunch.pruning.selection import drop_lowest

        magnitudes = matrix.weight.abs().reshape(1, -1)
        mask = drop_lowest(magnitudes, round(sparsity * magnitudes.numel())).view_as(matrix.weight)
        return relative_repairability(moments(matrix.weight, matrix.weight * mask, matrix.inputs))


def _in_proportion(scores: Mapping[str, float], matrices: Matrices, pruned: float, cap: float) -> dict[str, float]:
    """Weights to prune of every matrix, ``pruned`` in all; those that stay are in proportion to scores, at most ``cap``
    of its size.

    The matrix that overflows most is filled first, and the rest is redistributed over the others.
    """
    sizes = matrices.sizes
    kept: dict[str, float] = {}
    open_, left = dict(scores), sum(sizes.values()) - pruned
    while open_:
        total = sum(open_.values())
        shares = {name: left * score / total if total > 0 else left / len(open_) for name, score in open_.items()}
        worst = max(open_, key=lambda name: shares[name] / sizes[name])
        if shares[worst] <= cap * sizes[worst]:
            kept |= shares
            break
        kept[worst] = cap * sizes[worst]
        left -= kept[worst]
        del open_[worst]
    return {name: size - kept[name] for name, size in sizes.items()}


# --- whole weights ---------------------------------------------------------------------------------------------------


def apportion(
    targets: Mapping[str, float], sizes: Mapping[str, int], total: int, steps: Mapping[str, int], keep: bool = False
) -> dict[str, int]:
    """Whole numbers of weights to prune near ``targets``: with steps of one, exactly ``total`` in all.

    Every number is a multiple of its matrix' step, at most its size (with ``keep``, a step less), and within a step of
    its target. Largest remainders go up first. With larger steps (N:M) the sum may miss ``total`` by part of a step.
    """
    limits = {name: sizes[name] - (steps[name] if keep else 0) for name in targets}
    wanted = _within(targets, limits, total)
    # a hair is added, so that 2.9999999 counts as 3
    counts = {name: math.floor(target / steps[name] + 1e-9) * steps[name] for name, target in wanted.items()}
    left = total - sum(counts.values())
    order = sorted(counts, key=lambda name: (counts[name] - wanted[name]) / steps[name])
    before = math.inf
    while abs(left) < before:  # large steps may go too far, and small ones back
        before = abs(left)
        for name in order if left > 0 else reversed(order):
            step = steps[name] if left > 0 else -steps[name]
            near = abs(counts[name] + step - wanted[name]) <= steps[name] + 1e-6
            if near and 0 <= counts[name] + step <= limits[name] and abs(left - step) < abs(left):
                counts[name] += step
                left -= step
    return counts


def _within(targets: Mapping[str, float], limits: Mapping[str, int], total: float) -> dict[str, float]:
    """Targets between 0 and their limits, ``total`` in all: what the limits cut off is spread over the room left."""
    clipped: dict[str, float] = {name: float(min(max(target, 0.0), limits[name])) for name, target in targets.items()}
    lack = total - sum(clipped.values())
    room = {name: limits[name] - value if lack > 0 else value for name, value in clipped.items()}
    share = lack / sum(room.values()) if sum(room.values()) > 0 else 0.0
    return {name: value + min(share, 1.0) * room[name] for name, value in clipped.items()}
