"""Prune a classifier, and measure what every backend makes of it."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from freelunch.engine.device import choose
from freelunch.engine.overlays import pack
from freelunch.errors import FreelunchError, naming
from freelunch.results.stage import Stage
from freelunch.stages.classifiers import NETWORK, images_of, random_network
from freelunch.vision.backends import measured_layers, measured_norms, recovered
from freelunch.vision.images import Images
from freelunch.vision.layers import norms_of, prune
from freelunch.vision.networks import accuracy
from freelunch.vision.runs import SparseClassifierSpec


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
        value = accuracy(network, parts["test"])
        print(f"{backend}: accuracy {value:.4f}", flush=True)
        stderr = math.sqrt(value * (1 - value) / len(parts["test"]))
        measured: list[dict[str, Any]] = [{"metric": "accuracy", "split": "test", "value": value, "stderr": stderr}]
        if backend != "none":
            measured += measured_norms(network)
            # which all norms have
            measured.append({"metric": "epsilon", "value": next(iter(norms_of(network).values())).eps})
        records += [{"backend": backend} | record for record in measured]
    records += [{"backend": "none"} | record for record in measured_layers(dense, pruned, masks, pixels)]
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
