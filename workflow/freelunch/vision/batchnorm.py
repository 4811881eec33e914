"""Recalibration of batch norms: running statistics of a pruned network, from images without labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from freelunch.vision.layers import norms_of


@torch.no_grad()
def recalibrate_cumulative(network: nn.Module, pixels: Tensor, batch_size: int) -> None:
    """The usual way, in place: statistics are reset and become the average over batches, run in training mode.

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
def recalibrate_layers(network: nn.Module, pixels: Tensor) -> None:
    """Layer by layer, in place: each norm gets the mean and variance of its input behind the norms before it.

    In eval mode, on all images at once. Where the cumulative way normalises by the biased variance of a batch and keeps
    the unbiased one, here what is kept, the biased one, is what deeper layers have seen.
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


def set_epsilon(network: nn.Module, epsilon: float) -> None:
    """Give all batch norms another epsilon, in place, and keep what they compute with the statistics they have.

    ``gamma / sqrt(var + epsilon)`` stays: the gain takes up what the epsilon did. Without that, another epsilon would
    change the dense network too, wherever its own variances are not far above it.
    """
    for norm in norms_of(network).values():
        assert norm.running_var is not None
        with torch.no_grad():
            # a channel that never varies gives its bias alone, whatever its gain
            norm.weight.mul_(((norm.running_var + epsilon) / (norm.running_var + norm.eps)).sqrt())
        norm.eps = epsilon


def variances(network: nn.Module) -> dict[str, Tensor]:
    """Running variances ``[channels]`` of all batch norms: after a recalibration, those of what they normalise."""
    found = {}
    for name, norm in norms_of(network).items():
        assert norm.running_var is not None
        found[name] = norm.running_var.clone()
    return found


def below(network: nn.Module, epsilon: float) -> dict[str, float]:
    """Share of the channels of every batch norm whose running variance is under ``epsilon``, but not 0."""
    return {name: float(((each > 0) & (each < epsilon)).double().mean()) for name, each in variances(network).items()}
