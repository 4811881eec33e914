"""Stage ``recover``: reconstruct a pruned model window by window; a killed job goes on where it was."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..activations import DenseStates, load
from ..artifacts import Artifact, read_json
from ..errors import FreelunchError
from ..overlays import Masked
from ..recovery.reconstruct import Training, WindowResult, reconstruct_window
from ..specs import ReconstructedSpec
from ..windows import Window, tile
from .dense import SPLITS
from .network import open_network, tensors
from .stage import Stage

log = logging.getLogger(__name__)


def recover(stage: Stage) -> None:
    """Run the stage: per window a file of trained tensors, and a record of its losses by which a job is resumed."""
    spec = stage.spec
    assert isinstance(spec, ReconstructedSpec)
    model = spec.pruned.dense.calibration.model
    network = open_network(stage, model)
    masks = Masked(network.source, tensors(stage.open(spec.pruned)))
    cache = stage.open(spec.pruned.dense)
    # the batches of the dense pass, whatever is configured now: states that it did not keep must have its bits
    batch = max(1, cache.manifest["execution"]["stream_tokens"] // spec.pruned.dense.calibration.length)
    states = {split: DenseStates(network, _Kept(cache, split), batch, stage.folder) for split in SPLITS}
    training = Training(
        epochs=spec.epochs, batch_size=spec.batch_size, learning_rate=spec.learning_rate, warmup=spec.warmup,
        trains_norms=spec.trains_norms, seed=spec.seed,
    )  # fmt: skip

    windows = tile(spec.window, len(network.blocks))
    finished = {window.index: _finished(stage, window) for window in windows}
    resumed = sum(result is not None for result in finished.values())
    if resumed:
        log.info("going on after %d of %d finished windows", resumed, len(windows))
    records: list[dict[str, Any]] = []
    gc.freeze()  # all that lives now stays: what is collected below is looked for among the objects of one window
    for window in (progress := tqdm(windows, desc="windows", unit="window")):
        record = finished[window.index]
        if record is None:
            result = reconstruct_window(network, window, states, masks.mask, training)
            record = _write(stage, window, result)
            # optimisers refer to themselves, and would be kept, with their state, until Python looks for such cycles
            del result
            gc.collect()
        progress.set_postfix_str(f"{window.name}: loss {record['losses'][0]:.3g} -> {record['best_loss']:.3g}")
        records.append(record)
    tokens = spec.epochs * spec.pruned.dense.calibration.sequences * spec.pruned.dense.calibration.length
    stage.finish(
        achieved_sparsity=stage.open(spec.pruned).manifest["achieved_sparsity"],
        windows=[
            {key: value for key, value in record.items() if key not in ("file", "signature")} for record in records
        ],
        training_tokens=tokens,
        train_seconds=round(sum(record["seconds"] for record in records), 3),
        resumed_windows=resumed,
    )


class _Kept(Mapping[int, Tensor]):
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


def _names(window: Window) -> tuple[str, str]:
    return f"window-{window.index:03d}.safetensors", f"window-{window.index:03d}.json"


def _write(stage: Stage, window: Window, result: WindowResult) -> dict[str, Any]:
    """Tensors first, then the record that vouches for them."""
    data, about = _names(window)
    with stage.writing(data) as path:
        save_file(result.tensors, path)
    record = {
        "window": window.name,
        "signature": stage.signature,
        "file": stage.entry(data),
        **result.record(),
    }
    stage.write_json(about, record)
    return record


def _finished(stage: Stage, window: Window) -> dict[str, Any] | None:
    """The record of a window that an earlier, interrupted job finished with the same spec, inputs and code."""
    data, about = _names(window)
    if not all((stage.folder / name).is_file() for name in (data, about)):
        return None
    stage.add(data)
    stage.add(about)
    try:
        record: dict[str, Any] = read_json(stage.folder / about)
    except FreelunchError:
        record = {}
    if record.get("signature") == stage.signature and record.get("file") == stage.entry(data):
        return record
    log.info("window %s: an earlier result is damaged or was made by other code; training it again", window.name)
    return None
