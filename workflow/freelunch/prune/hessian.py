"""The layer-wise Hessian ``H = X^T X`` of ``||X W^T - X V^T||^2``: damping, and the factor of its inverse."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from freelunch.errors import FreelunchError
from freelunch.prune.matrix import finite

ESCALATION = 10.0
"""How much more damping is tried when a factorisation fails."""
_SMALL = 128
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


def inverse_factor(gram: Tensor, damping: float) -> Tensor:
    """Upper triangular ``U`` with ``U^T U = H^-1`` for the damped ``H``.

    Reversed in both directions, ``H`` has a lower factor that is the reverse of an upper ``R`` with ``R R^T = H``; so
    ``U = R^-1``, and neither ``H^-1`` nor a second factorisation is needed.
    """
    lower, _ = cholesky(gram.flip(0, 1), damping)
    _invert_lower(lower)
    return lower.flip(0, 1)


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
