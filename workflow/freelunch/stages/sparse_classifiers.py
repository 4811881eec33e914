"""Prune a classifier, and measure what every backend makes of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from freelunch.engine.device import choose
from freelunch.engine.overlays import pack
from freelunch.errors import FreelunchError, naming
from freelunch.results.stage import Stage
from freelunch.stages.classifiers import NETWORK, images_of, random_network
from freelunch.vision import batchnorm
from freelunch.vision.backends import recovered
from freelunch.vision.diagnostics import Diagnostics, diagnose
from freelunch.vision.images import Images
from freelunch.vision.layers import norms_of
from freelunch.vision.pruning import densities, prune
from freelunch.vision.runs import SparseClassifierSpec
from freelunch.vision.supervised import accuracy


def make(stage: Stage) -> None:
    """Write packed masks, and ``metrics.json``: the accuracy after every backend, and what is known of every layer.

    Raises:
        FreelunchError: the method does not fit the network, or its masks came out wrong.
    """
    spec = stage.spec
    assert isinstance(spec, SparseClassifierSpec)
    device = choose(stage.execution.device)
    parts = images_of(stage, spec.dense.images, device)
    dense = random_network(spec.dense).to(device)
    tensors = stage.tensors(spec.dense, NETWORK)
    dense.load_state_dict({name: tensors.load(name) for name in tensors.names})
    pixels = drawn(parts["train"], spec.calibration_images, spec.dense.seed)
    with naming(spec.dense.label):
        pruned, masks = prune(dense, spec.method, pixels, spec.dense.seed)
    records: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}
    for backend in spec.backends:
        started = _now(device)
        network = recovered(backend, dense, pruned, masks, pixels, spec.batch_size)
        seconds[backend] = round(_now(device) - started, 3)
        found = accuracy(network, parts["test"])
        print(f"{backend}: accuracy {found:.4f}", flush=True)
        at = {"backend": backend}
        records.append(at | _accuracy(found, len(parts["test"])))
        if backend != "none":
            records += [at | each for each in _norms(network)]
            records.append(at | {"metric": "epsilon", "value": _epsilon(network)})
    records += list(_layers(masks, diagnose(dense, pruned, pixels)))
    stage.write_tensors("masks.safetensors", {name: pack(mask.flatten(1).cpu()) for name, mask in masks.items()})
    stage.write_json("metrics.json", records)
    kept = sum(int(mask.sum()) for mask in masks.values())
    size = sum(mask.numel() for mask in masks.values())
    stage.finish(achieved_sparsity=1 - kept / size, backend_seconds=seconds)


def _now(device: torch.device) -> float:
    """The clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def drawn(images: Images, count: int, seed: int) -> Tensor:
    """Pixels of some images, drawn at random.

    Raises:
        FreelunchError: there are not so many.
    """
    if count > len(images):
        raise FreelunchError(f"calibration_images is {count}, and there are {len(images)} images to train on")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images.pixels[order[:count].to(images.pixels.device)]


def _accuracy(value: float, images: int) -> dict[str, Any]:
    stderr = math.sqrt(value * (1 - value) / images)
    return {"metric": "accuracy", "split": "test", "value": value, "stderr": stderr}


def _epsilon(network: nn.Module) -> float:
    """That of its norms, which all have the same."""
    return next(iter(norms_of(network).values())).eps


def _norms(network: nn.Module) -> Iterator[dict[str, Any]]:
    """Of every norm the lowest and the median variance of its input's channels, and the share under its epsilon.

    Channels that never vary are left out, and counted.

    ``step`` is its place in the network.
    """
    under = batchnorm.below(network, _epsilon(network))
    for number, (name, found) in enumerate(batchnorm.variances(network).items(), 1):
        at = {"position": name, "step": number}
        alive = found[found > 0].double()
        if len(alive):
            for metric, value in (("least_variance", alive.min()), ("median_variance", alive.median())):
                yield at | {"metric": metric, "value": float(value)}
        yield at | {"metric": "faint_channels", "value": under[name]}
        yield at | {"metric": "silent_channels", "value": 1 - len(alive) / len(found)}


def _layers(masks: dict[str, Tensor], found: dict[str, Diagnostics]) -> Iterator[dict[str, Any]]:
    """Of every layer what pruning left: its density, and how much of what it distorted a repair could undo."""
    for number, (name, density) in enumerate(densities(masks).items(), 1):
        at = {"backend": "none", "position": name, "step": number}
        yield at | {"metric": "layer_density", "value": density}
        each = found.get(name)
        if each is None:
            continue
        yield at | {"metric": "relative_repairability", "value": each.repairability}
        yield at | {"metric": "variance_ratio", "value": each.variance_ratio}
