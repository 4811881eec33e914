"""Train a classifier on the images of a data set."""

from __future__ import annotations

import time

import torch

from freelunch.engine.device import choose
from freelunch.results.stage import Stage
from freelunch.vision.images import Images, unpacked
from freelunch.vision.networks import accuracy, build, train
from freelunch.vision.runs import ClassifierSpec, ImagesSpec

NETWORK = "network.safetensors"


def make(stage: Stage) -> None:
    """Write the trained network's ``network.safetensors``; the manifest has its accuracies and the loss of each epoch.

    Raises:
        FreelunchError: training diverges.
    """
    spec = stage.spec
    assert isinstance(spec, ClassifierSpec)
    device = choose(stage.execution.device)
    parts = images_of(stage, spec.images, device)
    network = random_network(spec).to(device)
    started = time.perf_counter()
    losses = train(network, parts["train"], spec.recipe, spec.seed, f"classifiers.{spec.classifier}")
    seconds = time.perf_counter() - started
    stage.write_tensors(NETWORK, network.state_dict())
    stage.finish(
        parameters=sum(each.numel() for each in network.parameters()),
        losses=losses,
        accuracy={name: accuracy(network, images) for name, images in parts.items()},
        images={name: len(images) for name, images in parts.items()},
        train_seconds=round(seconds, 3),
    )


def images_of(stage: Stage, spec: ImagesSpec, device: torch.device) -> dict[str, Images]:
    """The splits of a prepared data set, each channel normalised by its mean and deviation over the training images."""
    files = {name: stage.tensors(spec, name) for name in ("train", "test")}
    parts = {name: unpacked(file.load("pixels"), file.load("labels")) for name, file in files.items()}
    return {name: images.normalised(parts["train"]).to(device) for name, images in parts.items()}


def random_network(spec: ClassifierSpec) -> torch.nn.Module:
    """The network of a spec with random weights."""
    source, recipe = spec.images.source, spec.recipe
    return build(recipe.architecture, source.classes, source.channels, spec.seed, recipe.channels, recipe.epsilon)
