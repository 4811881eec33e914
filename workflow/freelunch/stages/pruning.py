"""What every job that prunes reads and writes: weights and statistics of the dense model, files of masks."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from freelunch.engine.blocks import matrices
from freelunch.engine.device import DTYPES, choose
from freelunch.engine.overlays import SafetensorsFiles, pack
from freelunch.plan.facts import facts_of_file
from freelunch.plan.specs import GramsSpec, ModelSpec, PrunedSpec
from freelunch.pruning.matrix import Matrices, Matrix, Pruned, Statistics
from freelunch.pruning.pruner import Pruner
from freelunch.pruning.statistics import on_device
from freelunch.pruning.structured import Heads
from freelunch.results.artifacts import Artifact, read_json
from freelunch.results.stage import Stage

log = logging.getLogger(__name__)


class DenseStatistics:
    """Statistics of the dense model's inputs, read when they are looked at.

    Args:
        dense: the artifact with the sums.
        grams: reads the Gram matrix of a block by its name, if the method needs them.
    """

    def __init__(self, dense: Artifact, grams: Callable[[int, str], Tensor] | None) -> None:
        about = read_json(dense.file("statistics.json"))
        self.tokens: int = about["tokens"]
        self.leaders: dict[int, dict[str, str]] = {i: dict(pairs) for i, pairs in enumerate(about["leaders"])}
        self._sums = SafetensorsFiles([dense.file("statistics.safetensors")])
        self._grams = grams
        self._leader = {
            name: (block, leader) for block, pairs in self.leaders.items() for name, leader in pairs.items()
        }
        # matrices with a common input follow each other: one is held, with what was computed from its Gram matrix
        self._read = lru_cache(maxsize=1)(self._load)

    def of(self, name: str, gram: bool) -> Statistics:
        """Statistics of the inputs of a matrix; the same object for matrices that share them."""
        return self._read(*self._leader[name], gram)

    def forget(self) -> None:
        """Let go of what is held."""
        self._read.cache_clear()

    def _load(self, block: int, leader: str, with_gram: bool) -> Statistics:
        gram = self._grams(block, leader) if self._grams is not None and with_gram else None
        return Statistics(
            self.tokens, self._sums.load(f"{leader}.sums"), self._sums.load(f"{leader}.squared_norms"), gram
        )


def read_gram(grams: Artifact, device: str, block: int, leader: str) -> Tensor:
    """The Gram matrix of the inputs of a matrix, on the device if it has room."""
    return on_device(SafetensorsFiles([grams.file(GramsSpec.file(block))]).load(leader), choose(device))


def heads_of(model: Artifact) -> Heads:
    """The heads of a prepared model, from its own config."""
    facts = facts_of_file(model.file("config.json"))
    return Heads(facts.num_attention_heads, facts.num_key_value_heads, facts.head_dim)


class PruningJob:
    """A method, applied to a model.

    Attributes:
        pruner: gives the pruned matrices of a block.
        matrices: of the dense model, with the statistics of its own activations.
    """

    def __init__(self, stage: Stage, spec: PrunedSpec) -> None:
        model = spec.dense.calibration.model
        self._stage, self._seed, self._dtype = stage, spec.seed, DTYPES[model.source.dtype]
        self._source, self._device = stage.tensors(model), choose(stage.execution.device)
        grams = partial(read_gram, stage.open(spec.grams), stage.execution.device) if spec.grams else None
        self._statistics = DenseStatistics(stage.open(spec.dense), grams)
        leaders = self._statistics.leaders
        blocks = {name: block for block, names in leaders.items() for name in names}
        shapes = {name: self._source.shape(f"{name}.weight") for name in blocks}
        # most allocations look at weights and norms; a global threshold looks at scores, and so at Gram matrices
        gram = spec.method.is_global or spec.method.needs_gram_first
        self.matrices = Matrices(shapes, blocks, partial(self.load, gram=gram))
        self.pruner = Pruner(spec.method, self.matrices, leaders, heads_of(stage.open(model)))
        self._statistics.forget()
        self._uncalled = self._find_uncalled(model)
        for name in (name for sizes in self._uncalled.values() for name in sizes):
            log.warning("%s is never called in a forward pass: it is not pruned, and counts as dense", name)

    def _find_uncalled(self, model: ModelSpec) -> dict[int, dict[str, int]]:
        """Number of weights of the linear layers that the dense pass did not come by, by block and name."""
        leaders = self._statistics.leaders
        prefix = next(name.split(f".{index}.")[0] for index, names in leaders.items() for name in names)
        uncalled: dict[int, dict[str, int]] = {}
        for weight in self._source.names:
            name = weight.removesuffix(".weight")
            if name == weight or name in self.matrices.shapes or not weight.startswith(f"{prefix}."):
                continue
            if len(shape := self._source.shape(weight)) == 2:
                uncalled.setdefault(int(name[len(prefix) + 1 :].split(".")[0]), {})[name] = math.prod(shape)
        if not uncalled:
            return {}
        # imported here: most models need no network, nor transformers, to say that there are none
        from freelunch.stages.network import open_network

        network = open_network(self._stage, model)
        linear = {f"{network.block_name(at)}.{name}" for at in uncalled for name in matrices(network.blocks[at])}
        return {at: {name: size for name, size in each.items() if name in linear} for at, each in uncalled.items()}

    def load(self, name: str, gram: bool = True) -> Matrix:
        """A dense matrix with the statistics of the dense model."""
        return self.matrix(name, self._statistics.of(name, gram))

    def matrix(self, name: str, inputs: Statistics) -> Matrix:
        """A dense matrix with other statistics; on the device where their Gram matrix found room."""
        device = self._device if inputs.gram is None else inputs.gram.device
        return Matrix(name, self._read(f"{name}.weight", device), inputs, self._bias(name, device), self._seed)

    def _read(self, name: str, device: torch.device) -> Tensor:
        # rounded to the model's dtype first: what is scored is what is run
        return self._source.load(name).to(self._dtype).to(device).float()

    def _bias(self, name: str, device: torch.device) -> Tensor | None:
        return self._read(f"{name}.bias", device) if f"{name}.bias" in self._source else None

    def write(self, index: int, pruned: Iterable[tuple[Matrix, Pruned]]) -> BlockRecord:
        """Write the files of a pruned block: bit-packed masks, and what changed besides."""
        masks: dict[str, Tensor] = {}
        changed: dict[str, Tensor] = {}
        sparsity: dict[str, float] = {}
        uncalled = self._uncalled.get(index, {})
        count, size = 0, sum(uncalled.values())
        for matrix, found in pruned:
            mask = found.mask.cpu()
            masks[f"{matrix.name}.weight"] = pack(mask)
            lost = mask.numel() - int(mask.count_nonzero())
            sparsity[matrix.name] = lost / mask.numel()
            count, size = count + lost, size + mask.numel()
            if found.weight is not matrix.weight:
                changed[f"{matrix.name}.weight"] = (found.weight * found.mask).to(self._dtype).cpu()
            if found.bias is not matrix.bias and found.bias is not None:
                changed[f"{matrix.name}.bias"] = found.bias.to(self._dtype).cpu()
        files = {f"masks-{index:03d}.safetensors": masks}
        if changed:
            files[f"changed-{index:03d}.safetensors"] = changed
        for name, tensors in files.items():
            self._stage.write_tensors(name, tensors)
        return BlockRecord(list(files), sparsity | dict.fromkeys(uncalled, 0.0), count, size, list(uncalled))


@dataclass(frozen=True)
class BlockRecord:
    """What the manifest says of a pruned block: its files, and what they hold.

    Matrices that are never called are not pruned; they count in ``matrix_sparsity`` and ``size``.
    """

    files: list[str]
    matrix_sparsity: dict[str, float]
    pruned: int
    size: int
    uncalled: Sequence[str] = ()


def summary(records: Iterable[BlockRecord | Mapping[str, Any]]) -> dict[str, Any]:
    """Sparsity of a pruned network from the records of its blocks."""
    found = [record if isinstance(record, BlockRecord) else BlockRecord(**record) for record in records]
    uncalled = [name for record in found for name in record.uncalled]
    return {
        "achieved_sparsity": sum(record.pruned for record in found) / sum(record.size for record in found),
        "matrix_sparsity": {name: value for record in found for name, value in record.matrix_sparsity.items()},
        **({"uncalled_matrices": uncalled} if uncalled else {}),
    }
