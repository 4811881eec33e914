"""Training a classifier on labels, and its accuracy."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from freelunch.errors import FreelunchError
from freelunch.vision.architectures import TEST_BATCH
from freelunch.vision.images import Images
from freelunch.vision.sections import ClassifierConfig


def train(network: nn.Module, images: Images, recipe: ClassifierConfig, seed: int, name: str) -> list[float]:
    """Train in place, by cross entropy; gives the mean loss of every epoch and leaves the network in eval mode.

    The images that do not fill a batch are left out of an epoch, others in each.

    Args:
        network: on the device of the images.
        images: normalised.
        recipe: how.
        seed: of the order of images and their crops.
        name: of the classifier, for messages.

    Raises:
        FreelunchError: the loss is no longer finite.
    """
    generator = torch.Generator().manual_seed(seed)
    count = max(1, len(images) // recipe.batch_size)
    optimizer = torch.optim.SGD(
        network.parameters(), recipe.learning_rate, recipe.momentum, 0.0, recipe.weight_decay,
        nesterov=recipe.momentum > 0,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, recipe.epochs * count + 1, pct_start=0.1, cycle_momentum=False
    )
    losses: list[float] = []
    network.train()
    for epoch in tqdm(range(recipe.epochs), name, unit="epoch", mininterval=5):
        order = torch.randperm(len(images), generator=generator).to(images.labels.device)
        total = torch.zeros((), device=images.labels.device)
        for batch in order[: count * recipe.batch_size].split(recipe.batch_size):
            pixels = augmented(images.pixels[batch], recipe.augmentation, generator)
            loss = functional.cross_entropy(network(pixels), images.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        losses.append(float(total) / count)
        if not math.isfinite(losses[-1]):
            raise FreelunchError(f"{name}: the loss of epoch {epoch} is {losses[-1]}; lower its learning_rate")
    network.eval()
    return losses


def augmented(pixels: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """A batch ``[images, channels, size, size]``, each image shifted by up to an eighth of its side, and mirrored.

    Args:
        pixels: normalised: what is shifted in is the mean.
        kind: as ``ClassifierConfig.augmentation``.
        generator: of the CPU, so that crops are the same on every device.
    """
    if kind == "none":
        return pixels
    count, size = len(pixels), pixels.shape[-1]
    pad = max(1, size // 8)
    padded = functional.pad(pixels, (pad, pad, pad, pad))
    corner = torch.randint(2 * pad + 1, (2, count, 1), generator=generator).to(pixels.device)
    rows, columns = corner + torch.arange(size, device=pixels.device)
    images = torch.arange(count, device=pixels.device)
    # advanced indices are apart, so that the channels come last
    found = padded[images[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if kind == "crop_flip":
        mirrored = torch.rand(count, generator=generator).to(pixels.device) < 0.5
        found = torch.where(mirrored.view(-1, 1, 1, 1), found.flip(-1), found)
    return found.contiguous()


@torch.no_grad()
def accuracy(network: nn.Module, images: Images, batch_size: int = TEST_BATCH) -> float:
    """Share of the images whose largest logit is that of their label, in eval mode.

    Larger batches fall out of the caches of a CPU, and take longer.
    """
    network.eval()
    right = 0
    for pixels, labels in zip(images.pixels.split(batch_size), images.labels.split(batch_size), strict=True):
        right += int((network(pixels).argmax(1) == labels).sum())
    return right / len(images)
