"""Stage ``retrained``: train a pruned model as a whole; a killed job goes on from its last checkpoint."""

from __future__ import annotations

import logging
import time
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ..artifacts import describe, read_json, write_json
from ..blocks import matrices
from ..errors import FreelunchError
from ..overlays import Masked, SafetensorsFiles
from ..recovery.fit import totals
from ..recovery.retrain import retrain as train
from ..specs import RetrainedSpec
from ..windows import check_targets
from .dense import SPLITS, KeptStates
from .network import MASKS, open_network, open_source
from .stage import Stage

SAVED_EVERY = 600.0
"""Seconds between checkpoints, besides those at validations."""
_ABOUT = "checkpoint.json"
log = logging.getLogger(__name__)


def retrain(stage: Stage) -> None:
    """Run the stage: a file of trained tensors per block."""
    spec = stage.spec
    assert isinstance(spec, RetrainedSpec)
    crops = stage.tensors(spec.calibration)
    tokens = {split: crops.load(split) for split in SPLITS}
    dense: dict[str, Tensor] = {}
    if spec.dense is not None:
        kept = {split: KeptStates(stage.open(spec.dense), split) for split in SPLITS}
        dense = {split: states[max(states)] for split, states in kept.items()}
    network = open_network(stage, spec.base, open_source(stage, spec.base, [spec.pruned]))
    check_targets((name for block in network.blocks for name in matrices(block)), spec.training.targets)
    masks = Masked(stage.tensors(spec.base), stage.tensors(spec.pruned, MASKS))
    keeper = _Checkpoint(stage)
    result = train(network, tokens, dense, masks.mask, spec.training, keeper, stage.execution.checkpointing)
    for index in range(len(network.blocks)):
        prefix = f"{network.block_name(index)}."
        found = {name: tensor for name, tensor in result.tensors.items() if name.startswith(prefix)}
        stage.write_tensors(f"window-{index:03d}.safetensors", found)
    if result.fit.adapters:
        stage.write_tensors("adapter.safetensors", result.fit.adapters)
    stage.finish(
        achieved_sparsity=stage.open(spec.pruned).manifest["achieved_sparsity"],
        windows=[{"window": "model", **result.record()}],
        **totals([result.record()], spec.calibration.length),
        train_seconds=round(keeper.spent + result.fit.seconds, 3),
        resumed_at=keeper.resumed_at,
    )


class _Checkpoint:
    """The state of an interrupted training in the stage's folder; gone when the stage is done.

    Attributes:
        spent: seconds that went into it in earlier jobs.
        resumed_at: the step this job went on from.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage, self._started = stage, time.perf_counter()
        self._saved = self._started
        self.spent, self.resumed_at = 0.0, 0

    def due(self) -> bool:
        return time.perf_counter() - self._saved > SAVED_EVERY

    def save(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Tensors first, then the record that vouches for them; the one before goes last."""
        folder, name = self._stage.folder, f"checkpoint-{about['step']}.safetensors"
        with self._stage.writing(name) as path:
            save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, path)
        self._stage.forget(name)
        seconds = self.spent + time.perf_counter() - self._started
        record = about | {"file": name, "signature": self._stage.signature, "seconds": seconds}
        write_json(folder / _ABOUT, record | describe(folder / name))
        for path in folder.glob("checkpoint-*.safetensors"):
            if path.name != name:
                path.unlink()
        self._saved = time.perf_counter()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        path = self._stage.folder / _ABOUT
        if not path.is_file():
            return None
        try:
            about: dict[str, Any] = read_json(path)
            file = path.parent / about["file"]
            found = describe(file)
            if about["signature"] == self._stage.signature and found == {key: about[key] for key in found}:
                source = SafetensorsFiles([file])
                self.spent, self.resumed_at = about["seconds"], about["step"]
                log.info("going on after step %d", self.resumed_at)
                return {name: source.load(name) for name in source.names}, about
        except (FreelunchError, KeyError, TypeError, OSError):
            pass
        log.info("an earlier checkpoint is damaged or was made by other code; starting again")
        return None
