"""Convolutional classifiers of the shapes in ``architectures``, their training on labels, and their accuracy.

Every convolution lacks a bias; in ResNets each is directly followed by its batch norm.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from freelunch.errors import FreelunchError
from freelunch.vision.architectures import ARCHITECTURES, TEST_BATCH, Shape, check_architecture
from freelunch.vision.images import Images
from freelunch.vision.sections import ClassifierConfig


def build(
    architecture: str, classes: int, channels: int, seed: int = 0, width: int | None = None, epsilon: float = 1e-5
) -> nn.Module:
    """A network with random weights, in eval mode, from ``[images, channels, height, width]`` to ``[images, classes]``.

    An architecture is one of :data:`ARCHITECTURES`; another is refused. ``channels`` are those of an image, ``width``
    makes a slimmer network of the same depth, and ``epsilon`` is that of the batch norms.
    """
    shape = ARCHITECTURES[check_architecture(architecture)]
    kind = DenseNet if shape.kind == "dense" else ResNet
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kind(shape, classes, channels, width or shape.width)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.eps = epsilon
    return network.eval()


class ResNet(nn.Module):
    """A convolution, four stages of residual blocks, the mean over positions, a linear layer."""

    def __init__(self, shape: Shape, classes: int, channels: int, width: int) -> None:
        super().__init__()
        self.stem = _convolution(channels, width, 3)
        self.norm = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        inputs = width
        for stage, count in enumerate(shape.blocks):
            inner = width * 2**stage
            for index in range(count):
                stride = 2 if stage and not index else 1
                blocks.append(Residual(inputs, inner, inner * shape.expansion, stride))
                inputs = inner * shape.expansion
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(functional.relu(self.norm(self.stem(images)))).mean((2, 3)))
        return logits


class Residual(nn.Module):
    """``relu(x + f(x))``: two 3×3 convolutions, or a 3×3 between two of 1×1 where the output is wider than the middle.

    The 3×3 convolution has the stride of a bottleneck.
    """

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        super().__init__()
        if outputs == inner:
            sides = [(inputs, inner, 3, stride), (inner, inner, 3, 1)]
        else:
            sides = [(inputs, inner, 1, 1), (inner, inner, 3, stride), (inner, outputs, 1, 1)]
        self.convolutions = nn.ModuleList(_convolution(*side) for side in sides)
        self.norms = nn.ModuleList(nn.BatchNorm2d(side[1]) for side in sides)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(_convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            y = norm(convolution(functional.relu(y) if index else y))
        return functional.relu(y + self.shortcut(x))


class DenseNet(nn.Module):
    """A convolution, four stages of dense layers with transitions between that halve channels and sides, a head."""

    def __init__(self, shape: Shape, classes: int, channels: int, growth: int) -> None:
        super().__init__()
        inputs = 2 * growth
        self.stem = _convolution(channels, inputs, 3)
        parts: list[nn.Module] = []
        for stage, count in enumerate(shape.blocks):
            for _ in range(count):
                parts.append(DenseLayer(inputs, growth))
                inputs += growth
            if stage < len(shape.blocks) - 1:
                norm, convolution = nn.BatchNorm2d(inputs), _convolution(inputs, inputs // 2, 1)
                parts.append(nn.Sequential(norm, nn.ReLU(), convolution, nn.AvgPool2d(2)))
                inputs //= 2
        self.parts = nn.Sequential(*parts)
        self.norm = nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(functional.relu(self.norm(self.parts(self.stem(images)))).mean((2, 3)))
        return logits


class DenseLayer(nn.Module):
    """Joins to its input ``growth`` channels that a 1×1 and a 3×3 convolution, each behind its norm, make of it."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(inputs), nn.BatchNorm2d(4 * growth)])
        self.convolutions = nn.ModuleList([_convolution(inputs, 4 * growth, 1), _convolution(4 * growth, growth, 3)])

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            y = convolution(functional.relu(norm(y)))
        return torch.cat([x, y], 1)


def _convolution(inputs: int, outputs: int, side: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False)


# --- training ---------------------------------------------------------------------------------------------------------


def train(network: nn.Module, images: Images, recipe: ClassifierConfig, seed: int, name: str) -> list[float]:
    """Train in place, by cross entropy, and return the mean loss of every epoch; the network ends in eval mode.

    Images are normalised, on the device of the network; those that do not fill a batch are left out of an epoch, others
    in each. The seed is that of their order and crops, and messages have the name of the classifier.

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

    Pixels are normalised: what is shifted in is the mean. A kind is that of ``ClassifierConfig.augmentation``; the
    generator is one of the CPU, so that crops are the same on every device.
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
    moved = padded[images[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if kind == "crop_flip":
        mirrored = torch.rand(count, generator=generator).to(pixels.device) < 0.5
        moved = torch.where(mirrored.view(-1, 1, 1, 1), moved.flip(-1), moved)
    return moved.contiguous()


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
