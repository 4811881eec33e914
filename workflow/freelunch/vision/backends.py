"""Label-free backends: what is done to a pruned classifier with a few images, and how what pruning did is measured.

**Recalibration** takes the running statistics of batch norms anew. **Repair** scales the rows of every convolution so
that its outputs vary as much as the dense ones, with the scales of the language models (``recover.repair``); what
differs is where the variances come from. Layers are visited in forward order, and each sees what the repaired layers
before it give. Norms keep the dense statistics meanwhile, and every repair ends with a recalibration.

Where a batch norm follows a convolution directly, that recalibration undoes the scales: ``(g x - g mean) /
sqrt(g^2 var + eps)`` depends on ``g`` only through ``eps``. Such a repair can differ from recalibration alone only in
channels whose variance pruning has brought near ``eps``, as a recalibration with a much smaller epsilon shows.

Pixels are ``[images, channels, height, width]``; networks change in place and run in eval mode, on all images at once,
if nothing else is said.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from freelunch.errors import FreelunchError, suggest
from freelunch.pruning.hessian import Moments, relative_repairability
from freelunch.recover.repair import Mode, scales
from freelunch.vision.layers import Layer, convolutions_of, hooked, layers_of, norms_of, solve
from freelunch.vision.sections import BACKENDS

EPSILON = 1e-12
"""Of the control's batch norms."""


def recovered(
    backend: str, dense: nn.Module, pruned: nn.Module, masks: Mapping[str, Tensor], pixels: Tensor, batch_size: int
) -> nn.Module:
    """A copy of a pruned network after a backend, one of :data:`BACKENDS`; another is refused.

    Masks are those of the pruned network by layer, pixels those of the calibration images; the batch size is that of
    the cumulative recalibration.
    """
    if backend not in BACKENDS:
        raise FreelunchError(f"there is no backend {backend!r}; {suggest(backend, BACKENDS)}")
    network = copy.deepcopy(pruned)
    if backend == "none":
        return network
    if backend == "recalibrate_cumulative":
        recalibrate_cumulative(network, pixels, batch_size)
        return network
    if backend == "recalibrate_epsilon":
        set_epsilon(network, EPSILON)
    elif backend == "reconstruct":
        solve(dense, network, masks, pixels)
    elif backend in get_args(Mode):
        match_variances(dense, network, pixels, cast(Mode, backend))
    recalibrate(network, pixels)
    return network


# --- recalibration ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def recalibrate_cumulative(network: nn.Module, pixels: Tensor, batch_size: int) -> None:
    """The usual way: statistics are reset and become the average over batches, run in training mode.

    Every batch is normalised by its own statistics on the way, so that what deeper norms see depends on the batches.
    """
    norms = norms_of(network).values()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    batches = list(pixels.split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        # one image of one position has no variance
        batches[-2:] = [torch.cat(batches[-2:])]
    for batch in batches:
        network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


@torch.no_grad()
def recalibrate(network: nn.Module, pixels: Tensor) -> None:
    """Layer by layer: each norm gets the mean and variance of its input behind the norms before it.

    Where the cumulative way normalises by the biased variance of a batch and keeps the unbiased one, here what is kept,
    the biased one, is what deeper layers have seen.
    """

    def measure(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0].double(), (0, 2, 3), correction=0)
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)

    network.eval()
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms_of(network).values()]
    try:
        network(pixels)
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def set_epsilon(network: nn.Module, epsilon: float) -> None:
    """Give all batch norms another epsilon, and keep what they compute with the statistics they have.

    ``gamma / sqrt(var + epsilon)`` stays: the gain takes up what the epsilon did. Without that, another epsilon would
    change the dense network too, wherever its own variances are not far above it.
    """
    for norm in norms_of(network).values():
        assert norm.running_var is not None
        # a channel that never varies gives its bias alone, whatever its gain
        norm.weight.mul_(((norm.running_var + epsilon) / (norm.running_var + norm.eps)).sqrt())
        norm.eps = epsilon


# --- repair ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def match_variances(dense: nn.Module, pruned: nn.Module, pixels: Tensor, mode: Mode) -> None:
    """Repair the convolutions of a pruned network, which has the norms of the dense one; a mode is of ``scales``."""
    originals: dict[str, Tensor] = {}

    def keep(name: str, layer: nn.Module, inputs: tuple[Tensor], outputs: Tensor) -> None:
        originals[name] = outputs

    def scale(name: str, layer: nn.Conv2d, inputs: tuple[Tensor], outputs: Tensor) -> Tensor:
        factors = scales(paired_moments(originals.pop(name), outputs), mode).to(outputs)
        layer.weight.mul_(factors.view(-1, 1, 1, 1))
        return outputs * factors.view(-1, 1, 1)

    with hooked(convolutions_of(dense), keep):
        dense.eval()(pixels)
    with hooked(convolutions_of(pruned), scale):
        pruned.eval()(pixels)


def paired_moments(dense: Tensor, sparse: Tensor) -> Moments:
    """Biased moments of paired outputs of a layer ``[images, channels, ...]``, over images and positions."""
    channels = (outputs.transpose(0, 1).flatten(1).double() for outputs in (dense, sparse))
    d, s = (each - each.mean(1, keepdim=True) for each in channels)
    return Moments((d * d).mean(1), (s * s).mean(1), (d * s).mean(1), d.shape[1])


# --- diagnostics -----------------------------------------------------------------------------------------------------


def measured_norms(network: nn.Module) -> Iterator[dict[str, Any]]:
    """Of every norm the lowest and the median running variance of its channels, and the share under its epsilon.

    After a recalibration, these are the variances of what it normalises. Channels that never vary are left out, and
    counted. A record has ``metric``, ``value``, ``position`` and ``step``, the place of the norm in the network.
    """
    for step, (name, norm) in enumerate(norms_of(network).items(), 1):
        variance = norm.running_var
        assert variance is not None
        alive = variance[variance > 0].double()
        metrics = {"least_variance": alive.min(), "median_variance": alive.median()} if len(alive) else {}
        metrics["faint_channels"] = ((variance > 0) & (variance < norm.eps)).double().mean()
        yield from _records(name, step, metrics | {"silent_channels": 1 - len(alive) / len(variance)})


@torch.no_grad()
def measured_layers(
    dense: nn.Module, pruned: nn.Module, masks: Mapping[str, Tensor], pixels: Tensor
) -> Iterator[dict[str, Any]]:
    """What pruning did to every layer by itself: on the dense inputs, whatever the layers before it became.

    ``layer_density`` is the share of its weights that stay. ``relative_repairability`` is the residual over the raw
    distortion of its outputs under channelwise scales; lower is better (arXiv 2605.25508). ``variance_ratio`` is the
    mean variance of its pruned outputs over that of its dense ones. Layers whose dense outputs never vary have the
    density alone. Records are those of :func:`measured_norms`.
    """
    metrics = {name: {"layer_density": float(mask.double().mean())} for name, mask in masks.items()}
    others = layers_of(pruned)

    def compare(name: str, layer: Layer, inputs: tuple[Tensor], outputs: Tensor) -> None:
        moments = paired_moments(outputs, others[name](inputs[0]))
        if bool((moments.dense > 0).any()):
            metrics[name]["relative_repairability"] = relative_repairability(moments)
            metrics[name]["variance_ratio"] = float(moments.sparse.sum() / moments.dense.sum())

    with hooked(layers_of(dense), compare):
        dense.eval()(pixels)
    for step, (name, measured) in enumerate(metrics.items(), 1):
        yield from _records(name, step, measured)


def _records(position: str, step: int, metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for metric, value in metrics.items():
        yield {"position": position, "step": step, "metric": metric, "value": float(value)}
