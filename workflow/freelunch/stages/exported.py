"""Stage ``export``: a pruned or recovered network as a Hugging Face directory that transformers loads."""

from __future__ import annotations

import glob
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch

from freelunch.engine.device import DTYPES
from freelunch.engine.overlays import Masked
from freelunch.engine.streaming import Network
from freelunch.inputs.card import card, sizes
from freelunch.inputs.export import Export, export, kept_units, skeleton
from freelunch.inputs.models import INDEX, WEIGHTS, checked_config
from freelunch.plan.spec import RESULTS
from freelunch.plan.specs import ExportSpec
from freelunch.pruning.patterns import NM
from freelunch.pruning.structured import Units, find_units
from freelunch.results.artifacts import MANIFEST, Artifact, read_json
from freelunch.results.code import versions
from freelunch.results.stage import Stage
from freelunch.stages.network import MASKS, open_source
from freelunch.stages.pruning import DenseStatistics, heads_of

SHARD_BYTES = 4 * 2**30
_TYPES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64", torch.int32: "I32",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
log = logging.getLogger(__name__)


def make(stage: Stage, shard_bytes: int = SHARD_BYTES) -> None:
    """Run the stage: ``config.json``, safetensors files of at most ``shard_bytes`` (or one tensor), the tokenizer,
    packed masks where all shapes stayed, and a card.

    Raises:
        FreelunchError: pruning added a bias, and the config has no place for it.
    """
    spec = stage.spec
    assert isinstance(spec, ExportSpec)
    artifact = stage.open(spec.subject.base)
    small = [name for name in artifact.files if not name.endswith(".safetensors")]
    for name in small:
        artifact.file(name)
    config, dtype = checked_config(artifact.folder), DTYPES[spec.subject.base.source.dtype]
    source = open_source(stage, spec.subject.base, spec.subject.overlays)
    masks = Masked(stage.tensors(spec.subject.base), stage.tensors(spec.subject.overlays[0], MASKS))
    units = _units(stage, spec)
    plain = export(config, dtype, source, masks, [])
    found = export(config, dtype, source, masks, units)
    reasons = list(found.reasons)
    if found.smaller and not _same(plain, found):
        reasons = ["heads and channels stay, as zeros: without them the first block computes something else"]
        found = plain
    if not units:
        reasons = [f"pattern {spec.pruned.pattern} prunes no whole heads or channels"]
    for reason in reasons:
        log.info("%s", reason)

    for name in small:
        if name not in ("config.json", INDEX):
            with stage.writing(name) as path:
                shutil.copyfile(artifact.folder / name, path)
    stage.write_json("config.json", json.loads(found.config.to_json_string()))
    _write(stage, found, shard_bytes)
    kinds = {each.kind: i for i, each in enumerate(units[0])} if units else {}
    packed = {} if found.smaller else _masks(stage, spec)
    size = sizes(found.skeleton, packed, spec.pruned.method.pattern == NM(2, 4))
    metrics = _metrics(stage, spec)
    with stage.writing("README.md") as path:
        text = card(spec, size, metrics, bool(packed), found.smaller, versions()["freelunch"])
        path.write_text(text, encoding="utf-8")
    stage.finish(
        **size.as_dict(),
        evaluated=bool(metrics),
        smaller=found.smaller,
        reason="; ".join(reasons) or None,
        kept={kind: [int(kept_units(block[i], masks).sum()) for block in units] for kind, i in kinds.items()},
        parameters_before=sum(tensor.numel() for tensor in skeleton(config).values()),
        parameters=sum(tensor.numel() for tensor in found.skeleton.values()),
    )


def _masks(stage: Stage, spec: ExportSpec) -> dict[str, torch.Tensor]:
    """Copy the packed masks beside the model; all of them, one bit per weight."""
    overlay = spec.subject.overlays[0]
    artifact = stage.open(overlay)
    for name in artifact.files:
        if name.startswith(MASKS):
            with stage.writing(f"masks/{name}") as path:
                shutil.copyfile(artifact.file(name), path)
    masks = stage.tensors(overlay, MASKS)
    return {name: masks.load(name) for name in masks.names}


def _metrics(stage: Stage, spec: ExportSpec) -> list[dict[str, Any]]:
    """What evaluations of this very network found, if there are any by now; they are no inputs of an export."""
    found: list[dict[str, Any]] = []
    above = str(spec.subject.folder)
    label = glob.escape(spec.subject.name[: -len(spec.subject.key)])
    for path in sorted((stage.root / RESULTS / "evaluation").glob(f"{label}*/{MANIFEST}")):
        artifact = Artifact(path.parent)
        subject = artifact.manifest["spec"]["subject"]
        if subject.get("stage") == spec.subject.stage and artifact.manifest["inputs"].get(above) == stage.inputs[above]:
            found += [entry for entry in read_json(artifact.file("metrics.json")) if entry not in found]
    return found


def _units(stage: Stage, spec: ExportSpec) -> list[list[Units]]:
    """Heads and channels of every block of a structured run."""
    if not spec.structured:
        return []
    heads = heads_of(stage.open(spec.subject.base))
    leaders = DenseStatistics(stage.open(spec.pruned.dense), None).leaders
    tensors = stage.tensors(spec.subject.base)
    return [
        find_units(inside, {name: tensors.shape(f"{name}.weight") for name in inside}, heads)
        for inside in leaders.values()
    ]


@torch.no_grad()
def _same(plain: Export, found: Export) -> bool:
    """Whether the first block computes the same in both: shapes do not show all that a config may be used for."""
    tokens = torch.arange(32).reshape(2, 16) % plain.config.get_text_config().vocab_size
    networks = [Network(each.config, each, torch.float32) for each in (plain, found)]
    hidden = networks[0].embed(tokens)
    outputs = []
    for network in networks:
        with network.block(0) as block:
            outputs.append(network.run_block(0, block, hidden) - hidden)
    return bool((outputs[0] - outputs[1]).norm() <= 1e-3 * outputs[0].norm())


def _write(stage: Stage, found: Export, shard_bytes: int) -> None:
    """Write the tensors, and an index if they fill more than one file."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in found.skeleton.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    count = len(shards)
    files = [WEIGHTS] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    for file, names in zip(files, shards, strict=True):
        with stage.writing(file) as path:
            _write_tensors(path, found, names)
    if count > 1:
        where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        total = sum(tensor.nbytes for tensor in found.skeleton.values())
        stage.write_json(INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _write_tensors(path: Path, found: Export, names: list[str]) -> None:
    """Write a safetensors file with one tensor in memory at a time."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        tensor = found.skeleton[name]
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end],
        }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(found.load(name).contiguous().reshape(-1).view(torch.uint8).numpy().data)
