"""Pruning block by block on what the blocks before give: pruned ones, or pruned and recovered ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

from freelunch.engine.overlays import Masked, Replaced, SafetensorsFiles
from freelunch.engine.states import Prefix, load
from freelunch.plan.specs import PrunedSpec
from freelunch.pruning.matrix import Matrix, Statistics
from freelunch.results.stage import Stage
from freelunch.stages.network import CHANGED, MASKS, TRAINED, open_network
from freelunch.stages.pruning import BlockRecord, PruningJob


class PrunedPrefix:
    """The blocks that are pruned (and recovered) so far, over the dense model, and the states behind them.

    Attributes:
        network: the model as it is now; a block that was not pruned yet is dense.
        masked: its tensors without those that recovery trained.
    """

    def __init__(self, stage: Stage, spec: PrunedSpec, job: PruningJob) -> None:
        calibration = spec.dense.calibration
        self._stage, self._job, self._gram = stage, job, spec.method.needs_gram
        self._dense = open_network(stage, calibration.model)
        self._files = {start: SafetensorsFiles() for start in (MASKS, CHANGED, TRAINED)}
        self.masked = Masked(Replaced(self._dense.source, self._files[CHANGED]), self._files[MASKS])
        self.network = open_network(stage, calibration.model, Replaced(self.masked, self._files[TRAINED]))
        states = load(stage.open(spec.dense).file("calibration-000.safetensors"))
        batch = max(1, stage.execution.stream_tokens // calibration.length)
        self._prefix = Prefix(states, batch, stage.folder)

    def add(self, files: Iterable[str]) -> None:
        """Lay finished files of this stage over the model."""
        for name in files:
            for start, source in self._files.items():
                if name.startswith(start) and name.endswith(".safetensors"):
                    source.add(self._stage.folder / name)

    def prune(self, *blocks: int) -> list[BlockRecord]:
        """Prune the next blocks, each on what the pruned ones before it give; the states stay where they are."""
        inner = self._prefix.copy()  # a window of several blocks: its own are pruned, not yet recovered
        records = []
        for index in blocks:
            inputs = inner.statistics(self._dense, index, self._gram)
            load = partial(self._load, inputs)
            records.append(self._job.write(index, self._job.pruner.block(index, load)))
            self.add(records[-1].files)
            if index != blocks[-1]:
                inner.advance(self.network, index)
        return records

    def _load(self, inputs: Mapping[str, Statistics], name: str) -> Matrix:
        return self._job.matrix(name, inputs[name])

    def advance(self, index: int) -> None:
        """Take the states through a block as it is now."""
        self._prefix.advance(self.network, index)
