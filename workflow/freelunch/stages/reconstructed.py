"""Stage ``reconstructed``: train a pruned model window by window; a killed job goes on where it was.

With ``prune_inputs: recovered`` each window is pruned first, on what the recovered windows before it give. With
``execution.shards`` the windows are trained by several jobs (stage ``shards``), and this stage takes them over.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterable
from functools import partial

from tqdm import tqdm

from freelunch.engine.blocks import matrices
from freelunch.engine.states import States
from freelunch.errors import FreelunchError
from freelunch.plan.specs import ReconstructedSpec, ShardSpec
from freelunch.recover.flows import FLOWS
from freelunch.recover.reconstruct import reconstruct_window, solve_window
from freelunch.recover.training import totals
from freelunch.recover.windows import MATRICES, Window, check_targets, completed, tile
from freelunch.results.artifacts import SEAL
from freelunch.results.stage import Stage
from freelunch.stages.dense import SPLITS, KeptStates
from freelunch.stages.matrices import find_matrices
from freelunch.stages.network import open_network
from freelunch.stages.pruning import DenseStatistics, read_gram
from freelunch.stages.student import Interleaved, Student
from freelunch.stages.window_files import Record, adopt_shards, finished_window, write_window

log = logging.getLogger(__name__)


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
