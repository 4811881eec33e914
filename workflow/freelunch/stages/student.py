"""The pruned network that a reconstruction works on, and how it takes up what was trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from freelunch.engine.overlays import Masked, Replaced, SafetensorsFiles
from freelunch.engine.streaming import Network
from freelunch.plan.specs import PrunedSpec
from freelunch.recover.windows import Window
from freelunch.results.stage import Stage
from freelunch.stages.network import MASKS, TRAINED, open_network, open_source
from freelunch.stages.prefix import PrunedPrefix
from freelunch.stages.pruning import BlockRecord, PruningJob, summary
from freelunch.stages.window_files import Record


class Student:
    """The pruned model whose windows are trained: one that is pruned already.

    Attributes:
        network: with the windows that were left.
        masks: by which its matrices are pruned.
    """

    network: Network
    masks: Masked

    def __init__(self, stage: Stage, spec: PrunedSpec) -> None:
        self._artifact, self._folder = stage.open(spec), stage.folder
        model = spec.base
        self._trained = SafetensorsFiles()
        self.network = open_network(stage, model, Replaced(open_source(stage, model, [spec]), self._trained))
        self.masks = Masked(stage.tensors(model), stage.tensors(spec, MASKS))

    def enter(self, window: Window) -> list[BlockRecord]:
        """Before a window is trained; returns what was pruned for it."""
        return []

    def leave(self, record: Record, blocks: Iterable[int]) -> None:
        """After a window was trained, now or in an earlier job; ``blocks`` are those of which it is the last."""
        for name in record["files"]:
            if name.startswith(TRAINED):
                self._trained.add(self._folder / name)

    def summary(self, records: list[Record]) -> dict[str, Any]:
        """What the manifest says of the masks."""
        return {"achieved_sparsity": self._artifact.manifest["achieved_sparsity"]}


class Interleaved(Student):
    """One that is pruned window by window, on what the recovered windows before give."""

    def __init__(self, stage: Stage, spec: PrunedSpec) -> None:
        self._prefix = PrunedPrefix(stage, spec, PruningJob(stage, spec))
        self.network, self.masks = self._prefix.network, self._prefix.masked
        self._pruned: set[int] = set()

    def enter(self, window: Window) -> list[BlockRecord]:
        blocks = [block for block in window.blocks if block not in self._pruned]
        self._pruned |= set(blocks)
        return self._prefix.prune(*blocks)

    def leave(self, record: Record, blocks: Iterable[int]) -> None:
        self._prefix.add(record["files"])
        self._pruned |= set(record["blocks"])
        for block in blocks:
            self._prefix.advance(block)

    def summary(self, records: list[Record]) -> dict[str, Any]:
        return summary(block for record in records for block in record["pruned"])
