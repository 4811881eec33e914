"""What follows from the Gram matrix ``H = X^T X`` of the inputs of a layer.

It is the Hessian of ``||X W^T - X V^T||^2``: damping, least squares under a mask, the factor of its inverse. And it
has the variances of the outputs, dense and pruned, and their covariance, without running anything.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from freelunch.errors import FreelunchError
from freelunch.pruning.matrix import Statistics, finite

ESCALATION = 10.0
"""How much more damping is tried when a factorisation fails."""
EPSILON = 1e-12
"""Of the mean dense variance: relative, so that scales do not depend on the units of the activations. It bounds the
scale of a channel that pruning all but silenced (to about 1e6) and moves no other.
"""
_SMALL = 128
_ROUNDING = 1e-5
"""Of squared means: what a float32 Gram matrix leaves of the variance of constants."""
_PANEL = 1024
"""Rows that are multiplied at a time, in float64, which bounds memory."""
log = logging.getLogger(__name__)


def dead(gram: Tensor) -> Tensor:
    """Inputs that were never other than zero ``[columns]``: nothing is lost with their weights."""
    return gram.diagonal() == 0


def damped(gram: Tensor, damping: float) -> Tensor:
    """``H`` with ``damping`` times its mean diagonal added to the diagonal; dead inputs get 1 there."""
    diagonal = gram.diagonal()
    found = gram.clone()
    found.diagonal().add_(damping * diagonal.mean()).add_(dead(gram).to(gram))
    return found


def cholesky(gram: Tensor, damping: float) -> tuple[Tensor, float]:
    """Lower Cholesky factor of the damped ``H``, and the damping it took: ten times more after every failure.

    Raises:
        FreelunchError: ``H`` is not finite, or is not positive definite even with as much damping as signal.
    """
    if not finite(gram):
        raise FreelunchError("the Gram matrix of its inputs contains NaN or infinity")
    while True:
        factor, failed = torch.linalg.cholesky_ex(damped(gram, damping))
        if not int(failed):
            return factor, damping
        if damping >= 1:
            raise FreelunchError(f"the Gram matrix of its inputs is not positive definite, not with damping {damping}")
        log.warning("Cholesky factorisation failed with damping %g; trying %g", damping, damping * ESCALATION)
        damping *= ESCALATION


def solvable(gram: Tensor, damping: float) -> Tensor:
    """``H`` with as much damping as it takes to factorise it; so can be its parts then, but for rounding."""
    return damped(gram, cholesky(gram, damping)[1])


def masked_least_squares(weight: Tensor, mask: Tensor, hessian: Tensor, chunk: int = 1 << 24) -> Tensor:
    """``V`` that minimises ``tr (W - M * V) H (W - M * V)^T``: with kept ``S`` and pruned ``P``,
    ``V_S = W_S + H_SS^-1 H_SP W_P`` per row.

    Args:
        weight: ``[rows, columns]``, dense.
        mask: ``[rows, columns]``, True = kept; rows with one and the same mask share a factorisation.
        hessian: ``[columns, columns]``, positive definite.
        chunk: entries of the systems that are solved at a time, which bounds memory.

    Returns:
        ``[rows, columns]``, zero where pruned.
    """
    columns = mask.any(0)
    if bool((mask == columns)[mask.any(1)].all()):
        lower = factorised(hessian[columns][:, columns].unsqueeze(0))[0]
        change = torch.cholesky_solve((weight[:, ~columns] @ hessian[~columns][:, columns]).T, lower).T
        found = weight.clone()
        found[:, columns] += change
        return found * mask
    found = torch.zeros_like(weight)
    kept = mask.sum(1)
    most = int(kept.max())
    for rows in torch.arange(len(weight), device=weight.device).split(max(1, chunk // max(1, most) ** 2)):
        some = mask[rows]
        size = int(kept[rows].max())
        # kept columns first, in order; rows that keep fewer are filled up with pruned ones that read as identity
        columns = (~some).to(torch.uint8).sort(dim=1, stable=True).indices[:, :size]
        inside = some.gather(1, columns)
        systems = hessian[columns.unsqueeze(2), columns.unsqueeze(1)]
        if not bool(inside.all()):
            systems *= inside.unsqueeze(2) & inside.unsqueeze(1)
            systems.diagonal(dim1=1, dim2=2).add_((~inside).to(systems))
        missing = (weight[rows] * ~some) @ hessian
        change = (missing.gather(1, columns) * inside).unsqueeze(2)
        lower = factorised(systems)
        for factor, upper in ((lower, False), (lower.mT, True)):
            change = torch.linalg.solve_triangular(factor, change, upper=upper)
        found[rows] = (weight[rows] * some).scatter_add(1, columns, change.squeeze(2) * inside)
    return found


def factorised(systems: Tensor) -> Tensor:
    """Lower Cholesky factors ``[systems, size, size]`` of parts of a damped ``H``.

    A part of what could be factorised can, but for rounding; those that cannot are damped a little more.
    """
    damping = torch.finfo(systems.dtype).eps
    factors: Tensor
    factors, failed = torch.linalg.cholesky_ex(systems)
    while bool(failed.any()):
        if damping > 1:
            raise FreelunchError("parts of the Gram matrix of its inputs are not positive definite; use more damping")
        again = failed.nonzero().flatten()
        extra = damping * systems[again].diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
        systems[again] += torch.diag_embed(extra.expand(-1, systems.shape[-1]))
        factors, failed = torch.linalg.cholesky_ex(systems)
        damping *= ESCALATION
    return factors


def inverse_factor(inputs: Statistics, damping: float) -> Tensor:
    """Upper triangular ``U`` with ``U^T U = H^-1`` for the damped ``H``; once for all matrices that share inputs.

    Reversed in both directions, ``H`` has a lower factor that is the reverse of an upper ``R`` with ``R R^T = H``; so
    ``U = R^-1``, and neither ``H^-1`` nor a second factorisation is needed.
    """
    assert inputs.gram is not None
    if damping not in inputs.factors:
        lower, _ = cholesky(inputs.gram.flip(0, 1), damping)
        _invert_lower(lower)
        inputs.factors[damping] = lower.flip(0, 1)
    return inputs.factors[damping]


def _invert_lower(lower: Tensor) -> None:
    """Replace a lower triangular matrix by its inverse: by halves, which are matrix products for the most part."""
    size = lower.shape[0]
    if size <= _SMALL:
        identity = torch.eye(size, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, identity, upper=False))
        return
    half = size // 2
    first, last, below = lower[:half, :half], lower[half:, half:], lower[half:, :half]
    _invert_lower(first)
    _invert_lower(last)
    below.copy_(-(last @ below @ first))


# --- variances of outputs --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of the outputs of a layer over calibration data, before and after pruning."""

    dense: Tensor  # [channels] float64, biased variances of the dense outputs
    sparse: Tensor  # [channels] float64, those of the pruned outputs, for the same inputs
    covariance: Tensor  # [channels] float64, between the two
    samples: int  # outputs of each channel: tokens, or images times positions

    @property
    def varying(self) -> Tensor:
        """Channels ``[channels]`` of which the dense and the pruned output vary."""
        return (self.dense > 0) & (self.sparse > 0)

    @property
    def epsilon(self) -> Tensor:
        """Added to variances before their ratio is taken."""
        return EPSILON * self.dense[self.varying].mean()


def moments(weight: Tensor, pruned: Tensor, inputs: Statistics) -> Moments:
    """Moments of ``W x`` and ``U x``: ``w C w^T``, ``u C u^T`` and ``w C u^T`` per row, with ``C = G / n - mu mu^T``.

    In float64: a covariance is a small difference of large numbers. Variances that are less than rounding are 0.

    Args:
        weight: ``W`` ``[rows, columns]``, dense.
        pruned: ``U`` ``[rows, columns]``, zero where pruned.
        inputs: statistics of the dense ``x``, with their Gram matrix ``G``.

    Raises:
        FreelunchError: a weight or a statistic is NaN or infinite.
    """
    assert inputs.gram is not None
    means = inputs.means.to(inputs.gram.device)
    centred = inputs.gram.double().div_(inputs.tokens).addr_(means, means, alpha=-1)
    parts = []
    for dense, sparse in zip(weight.split(_PANEL), pruned.split(_PANEL), strict=True):
        w, u = dense.double(), sparse.double()
        with_u = u @ centred
        parts.append(torch.stack([
            _variances(w, w @ centred, means), _variances(u, with_u, means), (with_u * w).sum(1)
        ]))  # fmt: skip
    found = torch.cat(parts, 1)
    if not finite(found):
        raise FreelunchError("the variances of its outputs contain NaN or infinity")
    return Moments(found[0], found[1], found[2], inputs.tokens)


def _variances(weight: Tensor, product: Tensor, means: Tensor) -> Tensor:
    """Variances of ``W x`` from ``W C``; 0 where rounding is all there is."""
    variances = (product * weight).sum(1)
    # of one sign in all entries of the Gram matrix, or of a sign of its own in each
    floor = _ROUNDING * ((weight @ means).square() + weight.square() @ means.square())
    return variances.masked_fill(variances <= floor, 0)


def log_scales(dense: Tensor, sparse: Tensor, eps: Tensor) -> Tensor:
    """``log sqrt((v_dense + eps) / (v_sparse + eps))``: what makes pruned outputs vary as much as dense ones."""
    return 0.5 * ((dense + eps) / (sparse + eps)).log()


def relative_repairability(moments: Moments) -> float:
    """Distortion of a layer's centred outputs that channelwise matching leaves, over what it was (arXiv 2605.25508).

    Lower is better; above 1, matching adds to it. 0 of a layer that is not distorted.
    """
    scales = torch.ones_like(moments.dense)
    known = moments.varying
    scales[known] = log_scales(moments.dense[known], moments.sparse[known], moments.epsilon).exp()

    def distortion(factors: Tensor) -> Tensor:
        return (moments.dense + factors.square() * moments.sparse - 2 * factors * moments.covariance).sum()

    raw = distortion(torch.ones_like(scales))
    return float(distortion(scales) / raw) if float(raw) > 0 else 0.0
