"""Stage ``dense``: one pass of the calibration set through the dense model, shared by every run.

Keeps the hidden states at as many block boundaries as ``dense.max_gib`` allows, evenly spread, and the statistics that
criteria need.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext

import torch
from torch import Tensor
from tqdm import tqdm

from freelunch.engine.blocks import matrices
from freelunch.engine.states import batches, check_finite, create, forward, load, scratch
from freelunch.engine.streaming import Network
from freelunch.plan.specs import DenseSpec
from freelunch.pruning.statistics import Collector
from freelunch.recover.windows import boundaries_to_keep
from freelunch.results.artifacts import Artifact
from freelunch.results.stage import Stage
from freelunch.stages.network import open_network

SPLITS = ("calibration", "validation")
log = logging.getLogger(__name__)


def make(stage: Stage) -> None:
    """Write the kept states, and the statistics of every matrix."""
    spec = stage.spec
    assert isinstance(spec, DenseSpec)
    tokens = stage.tensors(spec.calibration)
    crops = {split: tokens.load(split) for split in SPLITS}
    network = open_network(stage, spec.calibration.model)
    blocks, length = len(network.blocks), spec.calibration.length
    batch = max(1, stage.execution.stream_tokens // length)

    width = network.embed(crops["calibration"][:1]).shape[-1]
    each = sum(len(rows) for rows in crops.values()) * length * width * network.dtype.itemsize
    kept = boundaries_to_keep(blocks, each, int(stage.max_gib * 2**30))
    log.info("keeping %d of %d block boundaries, %.3f GiB", len(kept), blocks + 1, len(kept) * each / 2**30)

    collected: dict[str, Tensor] = {}
    leaders: list[list[tuple[str, str]]] = []
    states: dict[str, Tensor] = {}
    for boundary in tqdm(range(blocks + 1), desc="dense pass, block boundaries", unit="boundary"):
        with ExitStack() as files:
            rooms = {
                split: _room(stage, files, boundary, split, (len(rows), length, width), network.dtype, boundary in kept)
                for split, rows in crops.items()
            }
            if boundary == 0:
                with network.embedding() as embed:
                    for split, rows in crops.items():
                        for part in batches(len(rows), batch):
                            rooms[split][part] = embed(rows[part]).cpu()
            else:
                inputs = _advance(network, boundary - 1, states, rooms, batch)
                for name, found in inputs.results().items():
                    at = f"{network.block_name(boundary - 1)}.{name}"
                    if inputs.leaders[name] == name:
                        collected |= {f"{at}.sums": found.sums, f"{at}.squared_norms": found.squared_norms}
                leaders.append([_full(network, boundary - 1, *pair) for pair in inputs.leaders.items()])
            for split, room in rooms.items():
                check_finite(room, f"dense {split} states at block boundary {boundary}")
            states = rooms
    stage.write_tensors("statistics.safetensors", collected)
    # in lists, which keep the order of the calls
    stage.write_json("statistics.json", {"tokens": crops["calibration"].numel(), "leaders": leaders})
    stage.finish(boundaries=kept, tokens=crops["calibration"].numel())


def _room(
    stage: Stage, files: ExitStack, boundary: int, split: str, shape: tuple[int, ...], dtype: torch.dtype, keep: bool
) -> Tensor:  # fmt: skip
    if not keep:
        return scratch(stage.folder, shape, dtype)
    path = files.enter_context(stage.writing(f"{split}-{boundary:03d}.safetensors"))
    return create(path, shape, dtype)


def _advance(
    network: Network, index: int, states: dict[str, Tensor], rooms: dict[str, Tensor], batch: int
) -> Collector:
    """Run a block over all splits; collect statistics of its matrices on the calibration split alone."""
    with network.block(index) as block:
        collector = Collector(matrices(block))
        for split, room in rooms.items():
            with collector.watching() if split == "calibration" else nullcontext():
                forward(network, index, block, "block", None, states[split], room, batch)
    return collector


def _full(network: Network, index: int, name: str, leader: str) -> tuple[str, str]:
    block = network.block_name(index)
    return f"{block}.{name}", f"{block}.{leader}"


class KeptStates(Mapping[int, Tensor]):
    """The kept block boundaries of a dense cache, memory-mapped when looked up."""

    def __init__(self, cache: Artifact, split: str) -> None:
        self._cache, self._split = cache, split

    def __getitem__(self, boundary: int) -> Tensor:
        return load(self._cache.file(f"{self._split}-{boundary:03d}.safetensors"))

    def __contains__(self, boundary: object) -> bool:
        return boundary in self._cache.manifest["boundaries"]

    def __iter__(self) -> Iterator[int]:
        return iter(self._cache.manifest["boundaries"])

    def __len__(self) -> int:
        return len(self._cache.manifest["boundaries"])
