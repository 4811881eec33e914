"""Repair by statistics: rows of a pruned matrix are scaled so that its outputs vary as much as the dense ones.

``gamma_c = sqrt((v_dense,c + eps) / (v_sparse,c + eps))`` with the variances of output channel ``c`` over calibration
data (arXiv 2605.21972, and ASR, arXiv 2605.21426; only their abstracts are known here). No label, no gradient and no
forward pass is needed: of a linear layer all variances follow from the second moments of its dense inputs.

Matching is no least squares. That scale is ``rho_c sqrt(v_dense,c / v_sparse,c)``, with ``rho_c`` the correlation of
the dense and the pruned output. Where it keeps an error of ``v_dense,c (1 - rho_c^2)``, matching has one of
``2 v_dense,c (1 - rho_c)``, up to twice as much. Of a plain mask over uncorrelated inputs, and of weights that were
solved for, the least-squares scale is about 1, and matching makes the error of the layer *larger*; what it keeps is how
loud the layer is.

A mean shift is not repaired: refinement ``bias`` does that, and should follow the scales. Here the mean ``U mu`` of an
output is scaled too, and a bias that was fitted to the pruned weights before is off by ``(gamma_c - 1) u_c mu``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from freelunch.pruning.hessian import Moments, log_scales

Mode = Literal["channel", "layer", "shrink"]


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
    known = moments.varying
    factors = torch.ones_like(moments.dense)
    if not bool(known.any()):
        return factors
    dense, sparse, covariance = (part[known] for part in (moments.dense, moments.sparse, moments.covariance))
    own = log_scales(dense, sparse, moments.epsilon)
    common = log_scales(dense.mean(), sparse.mean(), moments.epsilon)
    if mode == "channel":
        weights = torch.ones_like(own)
    elif mode == "layer":
        weights = torch.zeros_like(own)
    else:
        errors = (1 - (covariance / dense) * (covariance / sparse)).clamp(0, 1) / max(1, moments.samples - 1)
        spread = ((own - common).square().mean() - errors.mean()).clamp(min=0)
        # an estimate without error, of a row that lost nothing, counts whole even where no spread is seen
        weights = torch.where(errors > 0, spread / (spread + errors), 1.0)
    factors[known] = torch.lerp(common.expand_as(own), own, weights).exp()
    return factors
