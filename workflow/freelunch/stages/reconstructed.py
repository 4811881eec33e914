"""Stage ``reconstructed``: train a pruned model window by window; a killed job goes on where it was.

With ``prune_inputs: recovered`` each window is pruned first, on what the recovered windows before it give. With
``execution.shards`` the windows are trained by several jobs (stage ``shards``), and this stage takes them over.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from freelunch.engine.blocks import matrices
from freelunch.engine.overlays import Masked, Replaced, SafetensorsFiles
from freelunch.engine.states import States
from freelunch.engine.streaming import Network
from freelunch.errors import FreelunchError
from freelunch.plan.specs import PrunedSpec, ReconstructedSpec, ShardSpec
from freelunch.pruning.structured import find_units, grouped
from freelunch.recover.flows import FLOWS
from freelunch.recover.reconstruct import reconstruct_window, solve_window
from freelunch.recover.training import Trained, totals
from freelunch.recover.windows import MATRICES, BlockMatrices, Window, check_targets, completed, tile
from freelunch.results.artifacts import SEAL, describe, is_altered, read_json, replacing, sealed, write_json
from freelunch.results.stage import Stage
from freelunch.stages.dense import SPLITS, KeptStates
from freelunch.stages.network import MASKS, TRAINED, open_network, open_source
from freelunch.stages.prefix import PrunedPrefix
from freelunch.stages.pruning import BlockRecord, DenseStatistics, PruningJob, heads_of, read_gram, summary

log = logging.getLogger(__name__)
Record = dict[str, Any]
"""What the file beside a window's tensors says of it, and of the masks that were made with them."""


def make(stage: Stage) -> None:
    """Run the stage: per window a file of trained tensors, and a record of its losses by which a job is resumed."""
    spec = stage.spec
    assert isinstance(spec, ReconstructedSpec)
    job = _Job(stage, spec)
    # those that the rule waited for: what one job had trained already is not split
    shards = [each for each in spec.split(stage.execution.shards) if (stage.root / each.manifest).is_file()]
    records, resumed = job.run(len(job.windows), adopt_shards(stage, shards, keep=True))
    if not any(record["trainable_parameters"] for record in records):
        raise FreelunchError(f"targets {spec.training.targets}: parametrization {spec.training.parametrization} finds "
                             "nothing to train in any window")  # fmt: skip
    hidden = ("files", "signature", "pruned", SEAL)
    stage.finish(
        **job.student.summary(records),
        windows=[{key: value for key, value in record.items() if key not in hidden} for record in records],
        **totals(records, spec.dense.calibration.length),
        train_seconds=round(sum(record["seconds"] + record["pruning_seconds"] for record in records), 3),
        resumed_windows=resumed,
        **_peaks(stage, shards),
    )


def _peaks(stage: Stage, shards: Iterable[ShardSpec]) -> dict[str, float]:
    """Peak memory of the jobs that trained, where this one did not."""
    manifests = [stage.open(shard).manifest for shard in shards]
    names = [name for name in ("peak_gib", "peak_device_gib") if any(name in manifest for manifest in manifests)]
    return {name: max(manifest.get(name, 0.0) for manifest in manifests) for name in names}


def make_shard(stage: Stage) -> None:
    """Train an equal part of the windows, cut between blocks."""
    spec = stage.spec
    assert isinstance(spec, ShardSpec)
    job = _Job(stage, spec.reconstructed)
    before = adopt_shards(stage, spec.before, keep=False)
    blocks = len(job.student.network.blocks)
    first, last = (blocks * at // spec.shards for at in (spec.shard, spec.shard + 1))
    mine = [window.index for window in job.windows if first <= window.blocks[0] < last]
    if not before:
        job.windows = [window for window in job.windows if window.index in mine]
    records, resumed = job.run(mine[-1] + 1 if mine else 0, before)
    seconds = sum(record["seconds"] for record in records if record["index"] in mine)
    stage.finish(windows=mine, resumed_windows=resumed, train_seconds=round(seconds, 3))


class _Job:
    """The windows of a run, and what each is trained on."""

    def __init__(self, stage: Stage, spec: ReconstructedSpec) -> None:
        self._stage, self._spec = stage, spec
        calibration = spec.dense.calibration
        dense = open_network(stage, calibration.model)
        cache = stage.open(spec.dense)
        # the batches of the dense pass, whatever is configured now: states that it did not keep must have its bits
        batch = max(1, cache.manifest["execution"]["stream_tokens"] // calibration.length)
        kept = {split: KeptStates(cache, split) for split in SPLITS}
        states = {split: States(dense, kept[split], batch, stage.folder) for split in SPLITS}
        self.student = Interleaved(stage, spec.pruned) if spec.interleaved else Student(stage, spec.pruned)
        inside = find_matrices(stage, spec) if spec.window in MATRICES else []
        self.windows = tile(spec.window, len(dense.blocks), inside, spec.training.targets)
        check_targets((name for block in dense.blocks for name in matrices(block)), spec.training.targets)
        embedded = {split: kept[split][0] for split in SPLITS}
        self._flow = FLOWS[spec.flow](states, self.student.network, embedded, self.windows, batch, stage.folder)
        self._statistics = None
        if spec.grams is not None:
            grams = stage.open(spec.grams)
            self._statistics = DenseStatistics(cache, partial(read_gram, grams, stage.execution.device))

    def run(self, stop: int, done: dict[int, Record]) -> tuple[list[Record], int]:
        """Train the windows below index ``stop`` that are not done; the records of all, and how many were resumed."""
        windows = [window for window in self.windows if window.index < stop]
        finished: dict[int, Record | None] = {
            window.index: done.get(window.index) or finished_window(self._stage, window) for window in windows
        }
        if self._spec.sequential:
            # what comes after one that must be trained again must too
            first = next((index for index, record in finished.items() if record is None), stop)
            finished.update({index: None for index in finished if index >= first})
        resumed = sum(record is not None for index, record in finished.items() if index not in done)
        if resumed:
            log.info("going on after %d of %d finished windows", resumed, len(windows))
        records: list[Record] = []
        gc.freeze()  # all that lives now stays: what is collected below is looked for among the objects of one window
        try:
            for at, window in enumerate(progress := tqdm(windows, desc="windows", unit="window")):
                record = finished[window.index] or self._train(window)
                self.student.leave(record, completed(windows, at))
                self._flow.leave(window)
                progress.set_postfix_str(f"{window.name}: loss {record['losses'][0]:.3g} -> {record['best_loss']:.3g}")
                records.append(record)
        finally:
            gc.unfreeze()  # or nothing of this stage, on the GPU too, goes before the process does
        return records, resumed

    def _train(self, window: Window) -> Record:
        started = time.perf_counter()
        pruned = self.student.enter(window)
        pruning_seconds = time.perf_counter() - started
        mask_of, training = self.student.masks.mask, self._spec.training
        if self._statistics is None:
            result = reconstruct_window(self._flow, window, mask_of, training, self._stage.execution.compile)
        else:
            result = solve_window(self._flow, window, mask_of, training, partial(self._statistics.of, gram=True))
        record = write_window(self._stage, window, result, pruned, pruning_seconds)
        # optimisers refer to themselves, and would be kept, with their state, until Python looks for such cycles
        del result
        gc.collect()
        return record


# --- the network that is trained --------------------------------------------------------------------------------------


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


def find_matrices(stage: Stage, spec: ReconstructedSpec) -> list[BlockMatrices]:
    """Names within each block, for windows of matrices.

    Raises:
        FreelunchError: the window is ``key_up``, and keys and the MLP's channels are not made by matrices of their own.
    """
    leaders = read_json(stage.open(spec.dense).file("statistics.json"))["leaders"]
    blocks = [_within(dict(pairs), index) for index, pairs in enumerate(leaders)]
    if spec.window != "key_up":
        return [BlockMatrices(tuple(inside)) for inside in blocks]
    source, heads = stage.tensors(spec.base), heads_of(stage.open(spec.base))
    found: list[BlockMatrices] = []
    for inside, pairs in zip(blocks, leaders, strict=True):
        shapes = {name: source.shape(f"{full}.weight") for name, (full, _) in zip(inside, pairs, strict=True)}
        try:
            find_units(inside, shapes, heads)
        except FreelunchError:
            parts = " -> ".join("/".join(part) for part in grouped(inside))
            raise FreelunchError(
                "window key_up needs matrices of their own for q, k, v and o, and then an MLP; block "
                f"{len(found)} of {spec.base.model} calls {parts}; use window matrix or block"
            ) from None
        attention, _, mlp, _ = grouped(inside)
        # queries, keys and values are called in this order, and a gate before what it gates
        found.append(BlockMatrices(tuple(inside), attention[1], mlp[-1]))
    return found


def _within(leaders: dict[str, str], block: int) -> dict[str, str]:
    """The same by names within the block: what follows its number."""
    return {name.split(f".{block}.", 1)[1]: leader.split(f".{block}.", 1)[1] for name, leader in leaders.items()}


# --- files of windows -------------------------------------------------------------------------------------------------


def write_window(
    stage: Stage, window: Window, result: Trained, pruned: Iterable[BlockRecord], pruning_seconds: float
) -> Record:
    """Tensors first, then the record that vouches for them and for the masks that were made with them."""
    data, about = _names(window)
    written = {data: result.tensors}
    if result.fit.adapters:
        written[f"adapter-{window.index:03d}.safetensors"] = result.fit.adapters
    for name, tensors in written.items():
        stage.write_tensors(name, tensors)
    blocks = [asdict(block) for block in pruned]
    files = [*written, *(name for block in blocks for name in block["files"])]
    record = {
        "index": window.index,
        "window": window.name,
        "blocks": list(window.blocks),
        "signature": stage.signature,
        "files": {name: stage.entry(name) for name in files},
        "pruned": blocks,
        "pruning_seconds": round(pruning_seconds, 3),
        **result.record(),
    }
    stage.write_json(about, sealed(record))
    return record


def finished_window(stage: Stage, window: Window) -> Record | None:
    """The record of a window that an earlier, interrupted job finished with the same spec, inputs and code."""
    data, about = _names(window)
    if not all((stage.folder / name).is_file() for name in (data, about)):
        return None
    try:
        record: Record = read_json(stage.folder / about)
        files: dict[str, Any] = record["files"]
        known = record["signature"] == stage.signature and not is_altered(record)
        if known and all(describe(stage.folder / name) == entry for name, entry in files.items()):
            for name in (*files, about):
                stage.add(name)
            return record
    except (FreelunchError, KeyError, TypeError, OSError):
        pass
    log.info("window %s: an earlier result is damaged or was made by other code; training it again", window.name)
    return None


def adopt_shards(stage: Stage, shards: Iterable[ShardSpec], keep: bool) -> dict[int, Record]:
    """Take over the windows of finished shards; ``keep`` makes their files part of this stage's result."""
    found: dict[int, Record] = {}
    for artifact in map(stage.open, shards):
        if artifact.manifest["code"] != stage.code:
            raise FreelunchError(f"{artifact.folder}: was made by other code; delete it to have it made again")
        for name in artifact.files:
            path = artifact.file(name)
            if name.endswith(".json"):
                record: Record = read_json(path) | {"signature": stage.signature}
                found[record["index"]] = record
                write_json(stage.folder / name, sealed(record))
            else:
                _link(path, stage.folder / name)
            if keep:
                stage.add(name)
    return found


def _link(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        return
    with replacing(target) as part:
        try:
            os.link(source, part)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, part)


def _names(window: Window) -> tuple[str, str]:
    return f"window-{window.index:03d}.safetensors", f"window-{window.index:03d}.json"
