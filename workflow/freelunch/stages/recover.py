"""Stage ``recover``: reconstruct a pruned model window by window; a killed job goes on where it was.

With ``prune_inputs: recovered`` each window is pruned first, on what the recovered windows before it give.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from safetensors.torch import save_file
from tqdm import tqdm

from ..activations import DenseStates
from ..artifacts import describe, read_json
from ..errors import FreelunchError
from ..overlays import Masked
from ..recovery.reconstruct import Training, WindowResult, reconstruct_window
from ..specs import PrunedSpec, ReconstructedSpec
from ..streaming import Network
from ..windows import Window, tile
from .dense import SPLITS, KeptStates
from .network import MASKS, open_network, open_source
from .prefix import PrunedPrefix
from .pruning import BlockRecord, PruningJob, summary
from .stage import Stage

log = logging.getLogger(__name__)


def recover(stage: Stage) -> None:
    """Run the stage: per window a file of trained tensors, and a record of its losses by which a job is resumed."""
    spec = stage.spec
    assert isinstance(spec, ReconstructedSpec)
    calibration = spec.pruned.dense.calibration
    dense = open_network(stage, calibration.model)
    cache = stage.open(spec.pruned.dense)
    # the batches of the dense pass, whatever is configured now: states that it did not keep must have its bits
    batch = max(1, cache.manifest["execution"]["stream_tokens"] // calibration.length)
    states = {split: DenseStates(dense, KeptStates(cache, split), batch, stage.folder) for split in SPLITS}
    training = Training(
        epochs=spec.epochs, batch_size=spec.batch_size, learning_rate=spec.learning_rate, warmup=spec.warmup,
        trains_norms=spec.trains_norms, seed=spec.seed,
    )  # fmt: skip
    overlay = _Interleaved(stage, spec.pruned) if spec.interleaved else _Overlay(stage, spec.pruned)

    windows = tile(spec.window, len(dense.blocks))
    finished = {window.index: _finished(stage, window) for window in windows}
    if spec.interleaved:
        # every window was pruned on what those before it gave: what comes after one that must be trained again must too
        first = next((index for index, record in finished.items() if record is None), len(windows))
        finished.update(dict.fromkeys(range(first, len(windows))))
    resumed = sum(result is not None for result in finished.values())
    if resumed:
        log.info("going on after %d of %d finished windows", resumed, len(windows))
    records: list[dict[str, Any]] = []
    gc.freeze()  # all that lives now stays: what is collected below is looked for among the objects of one window
    for window in (progress := tqdm(windows, desc="windows", unit="window")):
        record = finished[window.index]
        if record is None:
            started = time.perf_counter()
            pruned = overlay.enter(window)
            pruning_seconds = time.perf_counter() - started
            result = reconstruct_window(overlay.network, window, states, overlay.masks.mask, training)
            record = _write(stage, window, result, pruned, pruning_seconds)
            # optimisers refer to themselves, and would be kept, with their state, until Python looks for such cycles
            del result
            gc.collect()
        overlay.leave(window, record)
        progress.set_postfix_str(f"{window.name}: loss {record['losses'][0]:.3g} -> {record['best_loss']:.3g}")
        records.append(record)
    hidden = ("files", "signature", "pruned")
    stage.finish(
        **overlay.summary(records),
        windows=[{key: value for key, value in record.items() if key not in hidden} for record in records],
        training_tokens=spec.epochs * calibration.sequences * calibration.length,
        train_seconds=round(sum(record["seconds"] + record["pruning_seconds"] for record in records), 3),
        resumed_windows=resumed,
    )


class _Overlay:
    """The pruned model whose windows are trained: one that is pruned already."""

    network: Network
    masks: Masked

    def __init__(self, stage: Stage, spec: PrunedSpec) -> None:
        self._artifact = stage.open(spec)
        model = spec.dense.calibration.model
        source = open_source(stage, model, [spec])
        self.network = open_network(stage, model, source)
        self.masks = Masked(stage.tensors(model), stage.tensors(spec, MASKS))

    def enter(self, window: Window) -> list[BlockRecord]:
        """Before a window is trained; returns what was pruned for it."""
        return []

    def leave(self, window: Window, record: dict[str, Any]) -> None:
        """After a window was trained, now or in an earlier job."""

    def summary(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """What the manifest says of the masks."""
        return {"achieved_sparsity": self._artifact.manifest["achieved_sparsity"]}


class _Interleaved(_Overlay):
    """One that is pruned window by window, on what the recovered windows before give."""

    def __init__(self, stage: Stage, spec: PrunedSpec) -> None:
        self._prefix = PrunedPrefix(stage, spec, PruningJob(stage, spec))
        self.network, self.masks = self._prefix.network, self._prefix.masked
        self._pruned: set[int] = set()

    def enter(self, window: Window) -> list[BlockRecord]:
        return self._prefix.prune(*(block for block in window.blocks if block not in self._pruned))

    def leave(self, window: Window, record: dict[str, Any]) -> None:
        self._prefix.add(record["files"])
        self._pruned |= set(window.blocks)
        for block in window.blocks:
            if 2 * block + 2 <= window.stop:
                self._prefix.advance(block)

    def summary(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        return summary(block for record in records for block in record["pruned"])


def _write(
    stage: Stage, window: Window, result: WindowResult, pruned: Iterable[BlockRecord], pruning_seconds: float
) -> dict[str, Any]:
    """Tensors first, then the record that vouches for them and for the masks that were made with them."""
    data, about = _names(window)
    with stage.writing(data) as path:
        save_file(result.tensors, path)
    blocks = [asdict(block) for block in pruned]
    files = [data, *(name for block in blocks for name in block["files"])]
    record = {
        "window": window.name,
        "signature": stage.signature,
        "files": {name: stage.entry(name) for name in files},
        "pruned": blocks,
        "pruning_seconds": round(pruning_seconds, 3),
        **result.record(),
    }
    stage.write_json(about, record)
    return record


def _finished(stage: Stage, window: Window) -> dict[str, Any] | None:
    """The record of a window that an earlier, interrupted job finished with the same spec, inputs and code."""
    data, about = _names(window)
    if not all((stage.folder / name).is_file() for name in (data, about)):
        return None
    try:
        record: dict[str, Any] = read_json(stage.folder / about)
        files: dict[str, Any] = record["files"]
        known = record["signature"] == stage.signature
        if known and all(describe(stage.folder / name) == entry for name, entry in files.items()):
            for name in (*files, about):
                stage.add(name)
            return record
    except (FreelunchError, KeyError, TypeError, OSError):
        pass
    log.info("window %s: an earlier result is damaged or was made by other code; training it again", window.name)
    return None


def _names(window: Window) -> tuple[str, str]:
    return f"window-{window.index:03d}.safetensors", f"window-{window.index:03d}.json"
