"""Repair by statistics: rows of a pruned matrix are scaled so that its outputs vary as much as the dense ones.

``gamma_c = sqrt((v_dense,c + eps) / (v_sparse,c + eps))`` with the variances of output channel ``c`` over calibration
data (arXiv 2605.21972, and ASR, arXiv 2605.21426; only their abstracts are known here). No label, no gradient and no
forward pass is needed: of a linear layer all variances follow from the second moments of its dense inputs.

Matching is no least squares. That scale is ``rho_c sqrt(v_dense,c / v_sparse,c)``, with ``rho_c`` the correlation of
the dense and the pruned output. Where it keeps an error of ``v_dense,c (1 - rho_c^2)``, matching has one of
``2 v_dense,c (1 - rho_c)``, up to twice as much. Of a plain mask over uncorrelated inputs, and of weights that were
solved for, the least-squares scale is about 1, and matching makes the error of the layer *larger*; what it keeps is how
loud the layer is.

A mean shift is not repaired: refinement ``bias`` does that, and it should follow the scales. Here the mean ``U mu`` of
an output is scaled with the rest, and a bias that was fitted to the pruned weights before is off by
``(gamma_c - 1) u_c mu``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from freelunch.errors import FreelunchError
from freelunch.prune.matrix import finite
from freelunch.prune.statistics import Statistics

Mode = Literal["channel", "layer", "shrink"]
EPSILON = 1e-12
"""Of the mean dense variance: relative, so that scales do not depend on the units of the activations. It bounds the
scale of a channel that pruning all but silenced (to about 1e6) and moves no other.
"""
_ROUNDING = 1e-5
"""Of squared means: what a float32 Gram matrix leaves of the variance of constants."""
_PANEL = 1024
"""Rows that are multiplied at a time, in float64, which bounds memory."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of the outputs of a layer over calibration data, before and after pruning.

    Attributes:
        dense: ``[channels]`` float64, biased variances of the dense outputs.
        sparse: ``[channels]`` float64, those of the pruned outputs, for the same inputs.
        covariance: ``[channels]`` float64, between the two.
        samples: number of outputs of each channel: tokens, or images times positions.
    """

    dense: Tensor
    sparse: Tensor
    covariance: Tensor
    samples: int


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


def scales(moments: Moments, mode: Mode) -> Tensor:
    """What each output channel is multiplied by ``[channels]`` float64.

    ``channel`` matches every channel, ``layer`` only the mean variance, with one scale. ``shrink`` lies between: the
    estimate of a channel counts as much as it is reliable. The rule of the paper is not public; this one is derived
    here, by empirical Bayes. ``log gamma_c = log(v_dense,c / v_sparse,c) / 2`` of ``n`` pairs of correlated normal
    outputs has a sampling variance of about ``s_c^2 = (1 - rho_c^2) / (n - 1)`` (delta method). With a prior around the
    layer's ``log gamma`` (a point that the mode ``layer`` gives too, rather than the mean over channels), of variance
    ``tau^2 = max(0, mean_c (log gamma_c - log gamma)^2 - mean_c s_c^2)``, the posterior mean is ``log gamma +
    tau^2 / (tau^2 + s_c^2) (log gamma_c - log gamma)``. ``n`` counts tokens as if they were independent and normal.
    Those of a sequence are correlated, and activations have heavy tails: there are fewer to go by than ``n``, and it
    shrinks less than it should.

    Channels keep 1 where the dense or the pruned output never varies: those pruned whole, say. They count for no other.
    """
    known = (moments.dense > 0) & (moments.sparse > 0)
    found = torch.ones_like(moments.dense)
    if not bool(known.any()):
        return found
    dense, sparse, covariance = (part[known] for part in (moments.dense, moments.sparse, moments.covariance))
    eps = EPSILON * dense.mean()
    own = _log_ratio(dense, sparse, eps)
    common = _log_ratio(dense.mean(), sparse.mean(), eps)
    if mode == "channel":
        weights = torch.ones_like(own)
    elif mode == "layer":
        weights = torch.zeros_like(own)
    else:
        errors = (1 - (covariance / dense) * (covariance / sparse)).clamp(0, 1) / max(1, moments.samples - 1)
        spread = ((own - common).square().mean() - errors.mean()).clamp(min=0)
        # an estimate without error, of a row that lost nothing, counts whole even where no spread is seen
        weights = torch.where(errors > 0, spread / (spread + errors), 1.0)
    found[known] = torch.lerp(common.expand_as(own), own, weights).exp()
    return found


def relative_repairability(moments: Moments) -> float:
    """Distortion of a layer's centred outputs that channelwise matching leaves, over what it was (arXiv 2605.25508).

    Lower is better; above 1, matching adds to it. 0 of a layer that is not distorted.
    """
    gammas = scales(moments, "channel")

    def distortion(factors: Tensor) -> Tensor:
        return (moments.dense + factors.square() * moments.sparse - 2 * factors * moments.covariance).sum()

    raw = distortion(torch.ones_like(gammas))
    return float(distortion(gammas) / raw) if float(raw) > 0 else 0.0


def _log_ratio(dense: Tensor, sparse: Tensor, eps: Tensor) -> Tensor:
    return 0.5 * ((dense + eps) / (sparse + eps)).log()
