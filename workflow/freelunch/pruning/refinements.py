"""Refinements of a pruned matrix: they sit on any mask, and are written one after the other, ``dsnot + exact``.

To add one, register a class here under its name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from freelunch.errors import FreelunchError
from freelunch.pruning.methods import Methods, describe, positive
from freelunch.pruning.patterns import NM, Pattern

if TYPE_CHECKING:
    from freelunch.pruning.matrix import Matrix, Pruned

NONE = "none"
_CHUNK = 1 << 24
"""Entries of the systems that are solved at a time: bounds memory to a few times 64 MiB, or to one system."""


@dataclass(frozen=True)
class Refinement:
    """Makes a pruned matrix better. Fields are settings, written ``name(field=value)``."""

    needs_gram: ClassVar[bool] = False
    """Whether it looks at the Gram matrix of the inputs."""
    changes_weights: ClassVar[bool] = False
    """Whether it changes the weights that stay."""
    structured: ClassVar[bool] = True
    """Whether it leaves structured patterns as they are."""
    first: ClassVar[bool] = False
    """Whether it takes back what came before it."""
    last: ClassVar[bool] = False
    """Whether what comes after it would make it wrong."""

    def operations(self, rows: int, columns: int, kept: float) -> float:
        """Arithmetic operations on a matrix of whose columns the share ``kept`` stays; those that count."""
        return 0.0

    def memory(self, rows: int, columns: int, kept: float) -> float:
        """Bytes that it takes beside the matrix and its Gram matrix."""
        return 0.0

    def refine(self, matrix: Matrix, pruned: Pruned, pattern: Pattern) -> Pruned:
        """A better mask that fits the pattern as well, or better weights or a better bias under the mask."""
        raise NotImplementedError


REFINEMENTS: Methods[Refinement] = Methods("refinement")


def parse_refinements(text: object) -> tuple[Refinement, ...]:
    """The refinements that a text such as ``none``, ``exact`` or ``dsnot + admm(rho=2)`` stands for, in order."""
    if not isinstance(text, str):
        raise FreelunchError(f"{text!r} is no refinement; write none, or names joined by +")
    if text.strip() == NONE:
        return ()
    refinements = REFINEMENTS.parse_joined(text)
    for before, after in pairwise(refinements):
        if before.last:
            raise FreelunchError(
                f"refinement {text!r}: {describe(before)} fits the weights it is given, so it comes last"
            )
        if after.first:
            raise FreelunchError(f"refinement {text!r}: {describe(after)} starts from dense weights, so it comes first")
    return refinements


def describe_refinements(refinements: tuple[Refinement, ...]) -> str:
    """The text that stands for refinements."""
    return " + ".join(describe(refinement) for refinement in refinements) or NONE


@REFINEMENTS.register("dsnot")
@dataclass(frozen=True)
class DSnoT(Refinement):
    """Dynamic sparse no training (Zhang et al. 2024, arXiv 2310.08915), from the mean and variance of the inputs.

    The expected error of a row is ``e = sum over pruned j of W_ij E[X_j]``. A cycle revives the pruned weight with the
    largest ``sign(e) W_ij E[X_j] / Var(X_j)``, and prunes the kept one with the lowest ``|W_ij| ||X_j||`` among those
    whose loss moves ``e`` towards zero too; for N:M both in one group. A row is done after ``cycles`` swaps, when
    ``|e|`` is at most ``threshold``, or when the next swap would not bring ``|e|`` down. Starts from the dense
    weights: those updated for another mask no longer fit.
    """

    structured: ClassVar[bool] = False
    first: ClassVar[bool] = True
    cycles: int = 50
    threshold: float = 0.1

    def __post_init__(self) -> None:
        positive(cycles=self.cycles)
        if self.threshold < 0:
            raise FreelunchError(f"threshold must be at least 0, not {self.threshold:g}")

    def refine(self, matrix: Matrix, pruned: Pruned, pattern: Pattern) -> Pruned:
        import torch

        weight, mask = matrix.weight, pruned.mask.clone()
        rows, columns = weight.shape
        size = pattern.of if isinstance(pattern, NM) else columns
        contribution = weight * matrix.inputs.means.to(weight)
        variances = matrix.inputs.variances.to(weight)
        growth = contribution / variances.clamp(min=torch.finfo(weight.dtype).tiny)
        growth[:, variances == 0] = 0  # a constant input is the bias' business
        importance = weight.abs() * matrix.inputs.squared_norms.sqrt().to(weight)
        error = (contribution * ~mask).sum(1)
        active = torch.arange(rows, device=weight.device)
        for _ in range(self.cycles):
            active = active[error[active].abs() > self.threshold]
            if not len(active):
                break
            sign, kept = error[active].sign().unsqueeze(1), mask[active]
            gain = (sign * growth[active]).masked_fill(kept, -torch.inf)
            helps = kept & (sign * contribution[active] < 0)
            price = importance[active].masked_fill(~helps, torch.inf)
            grown, grow = gain.view(len(active), -1, size).max(2)
            lost, drop = price.view(len(active), -1, size).min(2)
            best, group = grown.masked_fill(lost.isinf(), -torch.inf).max(1)
            offset, at = group * size, group.unsqueeze(1)
            grow, drop = grow.gather(1, at).squeeze(1) + offset, drop.gather(1, at).squeeze(1) + offset
            after = error[active] - contribution[active, grow] + contribution[active, drop]
            better = (best > 0) & (after.abs() < error[active].abs())
            active, grow, drop = active[better], grow[better], drop[better]
            mask[active, grow], mask[active, drop] = True, False
            error[active] = after[better]
        return replace(pruned, mask=mask, weight=weight)


@REFINEMENTS.register("exact")
@dataclass(frozen=True)
class Exact(Refinement):
    """``min_V ||X W^T - X (M * V)^T||^2``: with kept ``S`` and pruned ``P``, ``V_S = W_S + H_SS^-1 H_SP W_P`` per row.

    One Cholesky factorisation per row, of as many columns as it keeps: for models whose rows have some thousand
    inputs use ``admm``. ``H`` gets ``damping`` times its mean diagonal.
    """

    needs_gram: ClassVar[bool] = True
    changes_weights: ClassVar[bool] = True
    damping: float = 0.01

    def __post_init__(self) -> None:
        positive(damping=self.damping)

    def operations(self, rows: int, columns: int, kept: float) -> float:
        return rows * (kept * columns) ** 3 / 3 + 2 * rows * columns**2

    def memory(self, rows: int, columns: int, kept: float) -> float:
        return 4 * (3 * max(_CHUNK, (kept * columns) ** 2) + columns**2 + 3 * rows * columns)

    def refine(self, matrix: Matrix, pruned: Pruned, pattern: Pattern) -> Pruned:
        from freelunch.pruning.hessian import masked_least_squares, solvable

        assert matrix.inputs.gram is not None
        hessian = solvable(matrix.inputs.gram, self.damping).to(matrix.weight.device)
        return replace(pruned, weight=masked_least_squares(matrix.weight, pruned.mask, hessian, _CHUNK))


@REFINEMENTS.register("admm")
@dataclass(frozen=True)
class ADMM(Refinement):
    """``min_V ||X W^T - X (M * V)^T||^2`` by the alternating direction method of multipliers (Boza 2024,
    arXiv 2401.02938).

    ``V = (W H + rho (Z - U)) (H + rho)^-1``, ``Z = M * (V + U)``, ``U = U + V - Z``; columns are scaled by their norms
    first, so that ``rho`` is in units of the mean of ``H``'s diagonal. Starts from the weights it is given and returns
    the last ``Z``.
    """

    needs_gram: ClassVar[bool] = True
    changes_weights: ClassVar[bool] = True
    iterations: int = 20
    rho: float = 1.0
    damping: float = 0.01

    def __post_init__(self) -> None:
        positive(iterations=self.iterations, rho=self.rho, damping=self.damping)

    def operations(self, rows: int, columns: int, kept: float) -> float:
        return 2 * (self.iterations + 1) * rows * columns**2 + 2 * columns**3

    def memory(self, rows: int, columns: int, kept: float) -> float:
        return 4 * (3 * columns**2 + 4 * rows * columns)

    def refine(self, matrix: Matrix, pruned: Pruned, pattern: Pattern) -> Pruned:
        import torch

        from freelunch.pruning.hessian import factorised, solvable

        gram = matrix.inputs.gram
        assert gram is not None
        hessian = solvable(gram, self.damping)
        scale = hessian.diagonal().sqrt()
        hessian = (hessian / scale / scale.unsqueeze(1)).to(matrix.weight.device)
        scale = scale.to(matrix.weight.device)
        hessian_rho = hessian + self.rho * torch.eye(len(scale), device=hessian.device)
        inverse = torch.cholesky_inverse(factorised(hessian_rho.unsqueeze(0))[0])
        target = (matrix.weight * scale) @ hessian
        kept = pruned.weight * scale * pruned.mask
        duals = torch.zeros_like(kept)
        for _ in range(self.iterations):
            free = (target + self.rho * (kept - duals)) @ inverse
            kept = (free + duals) * pruned.mask
            duals += free - kept
        return replace(pruned, weight=kept / scale)


@REFINEMENTS.register("bias")
@dataclass(frozen=True)
class Bias(Refinement):
    """``b_i += sum_j (1 - M_ij) W_ij E[X_j]`` with the dense weights ``W`` (FLAP, An et al. 2023, arXiv 2312.11983).

    Weights that stay may have been changed; the mean of what they now give is compensated too. A layer without a bias
    gets one. Outputs all of whose weights are pruned are gone, and stay so.
    """

    last: ClassVar[bool] = True

    def refine(self, matrix: Matrix, pruned: Pruned, pattern: Pattern) -> Pruned:
        lost = matrix.weight - pruned.weight * pruned.mask
        change = (lost @ matrix.inputs.means.to(lost)) * pruned.mask.any(1)
        if not bool(change.any()):
            return pruned  # nothing to make up for, and no reason for a bias where there is none
        return replace(pruned, bias=change if matrix.bias is None else matrix.bias + change)
