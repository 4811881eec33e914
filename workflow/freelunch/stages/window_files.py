"""Files of a window: its trained tensors, and the record by which an interrupted job is resumed."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from freelunch.errors import FreelunchError
from freelunch.plan.specs import ShardSpec
from freelunch.recover.training import Trained
from freelunch.recover.windows import Window
from freelunch.results.artifacts import describe, is_altered, read_json, replacing, sealed, write_json
from freelunch.results.stage import Stage
from freelunch.stages.pruning import BlockRecord

log = logging.getLogger(__name__)
Record = dict[str, Any]


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
