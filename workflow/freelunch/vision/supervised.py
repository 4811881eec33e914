"""Training a classifier on labels, and its accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from .images import Images


@dataclass(frozen=True)
class Recipe:
    """SGD with Nesterov momentum and a learning rate that rises over a tenth of the steps and falls as a cosine."""

    epochs: int
    batch_size: int = 128
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    seed: int = 0
    """Of the order of images."""


def train(network: nn.Module, images: Images, recipe: Recipe) -> list[float]:
    """Train in place, by cross entropy; gives the mean loss of every epoch and leaves the network in eval mode.

    The images that do not fill a batch are left out of an epoch, others in each.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    count = max(1, len(images) // recipe.batch_size)
    optimizer = torch.optim.SGD(
        network.parameters(), recipe.learning_rate, recipe.momentum, 0.0, recipe.weight_decay, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, recipe.epochs * count + 1, pct_start=0.1, cycle_momentum=False
    )
    losses = []
    network.train()
    for _ in range(recipe.epochs):
        order = torch.randperm(len(images), generator=generator)
        total = 0.0
        for batch in order[: count * recipe.batch_size].split(recipe.batch_size):
            loss = functional.cross_entropy(network(images.pixels[batch]), images.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        losses.append(total / count)
    network.eval()
    return losses


@torch.no_grad()
def accuracy(network: nn.Module, images: Images, batch_size: int = 500) -> float:
    """Share of the images whose largest logit is that of their label, in eval mode."""
    network.eval()
    right = 0
    for pixels, labels in zip(images.pixels.split(batch_size), images.labels.split(batch_size), strict=True):
        right += int((network(pixels).argmax(1) == labels).sum())
    return right / len(images)
