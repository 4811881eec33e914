"""The state of an interrupted training of a whole model, on disk."""

from __future__ import annotations

import logging
import time
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from freelunch.engine.overlays import SafetensorsFiles
from freelunch.errors import FreelunchError
from freelunch.results.artifacts import describe, is_altered, read_json, sealed, write_json
from freelunch.results.stage import Stage

SAVED_EVERY = 600.0
"""Seconds between checkpoints, besides those at validations."""
_ABOUT = "checkpoint.json"
log = logging.getLogger(__name__)


class Checkpoint:
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
        write_json(folder / _ABOUT, sealed(record | describe(folder / name)))
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
            known = about["signature"] == self._stage.signature and not is_altered(about)
            if known and found == {key: about[key] for key in found}:
                source = SafetensorsFiles([file])
                self.spent, self.resumed_at = about["seconds"], about["step"]
                log.info("going on after step %d", self.resumed_at)
                return {name: source.load(name) for name in source.names}, about
        except (FreelunchError, KeyError, TypeError, OSError):
            pass
        log.info("an earlier checkpoint is damaged or was made by other code; starting again")
        return None
