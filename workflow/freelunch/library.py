"""Pruning without a config: a model directory and a list of texts in, a network, a perplexity or a model out.

Every function is a plan of one run, made and checked as that of a ``config.yaml``, and runs the stages of the pipeline
in a working directory. What is there already is taken.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freelunch.errors import FreelunchError
from freelunch.inputs.models import read_object
from freelunch.plan.config import parse_config
from freelunch.plan.plan import Plan, make_plan
from freelunch.plan.spec import RESULTS, Spec
from freelunch.plan.specs import ExportSpec, ModelSpec, OverlaySpec
from freelunch.results.artifacts import Artifact, read_json, replacing
from freelunch.runner import Runner

WORK = "freelunch"
_SUITE = "library"


@dataclass(frozen=True)
class Pruned:
    """A pruned, and perhaps recovered, network: what :func:`prune` and :func:`reconstruct` give.

    Attributes:
        work: the working directory.
        raw: sections of a config: the model, its texts, and how jobs run.
        axes: of the run.
    """

    work: Path
    raw: dict[str, Any]
    axes: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where its masks and weights lie, beside a manifest that says what was done."""
        return self.work / self._planned()[1].folder

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest: sparsity, losses, seconds, versions."""
        return dict(read_json(self.folder / "manifest.json"))

    def _planned(self) -> tuple[Plan, OverlaySpec]:
        """A plan of its run, and the network in it."""
        task = {"data": "texts", "splits": ["validation"], "length": self.axes["length"]}
        plan = _plan(self.raw, [self.axes], task)
        subject = plan.runs[_SUITE][-1].subject
        assert subject is not None and not isinstance(subject, ModelSpec)  # every run of axes prunes
        return plan, subject

    def _made(self) -> Pruned:
        """This network, with what it lacks made."""
        _need(self.work, *self._planned())
        return self


def prune(
    model: str | Path,
    texts: Sequence[str],
    *,
    criterion: str = "wanda",
    pattern: str = "50%",
    allocation: str = "uniform",
    refinement: str = "none",
    sequences: int = 128,
    length: int = 2048,
    validation: float = 0.2,
    dtype: str | None = None,
    work: str | Path = WORK,
    execution: dict[str, Any] | None = None,
    **axes: Any,
) -> Pruned:
    """Prune a model.

    Args:
        model: a Hugging Face directory with safetensors and a tokenizer.
        texts: documents to calibrate on.
        criterion: such as ``wanda`` or ``ria(alpha=1)``.
        pattern: such as ``50%``, ``2:4`` or ``20% structured``.
        allocation: how the sparsity is spread over matrices.
        refinement: what is done to the pruned matrices, joined by ``+``.
        sequences: calibration sequences; a quarter as many, at least one, are kept for validation.
        length: tokens per sequence.
        validation: share of the texts that validation sequences are drawn from.
        dtype: of the weights; that of the model's ``config.json`` if not given.
        work: directory for results, which are taken from there the next time.
        execution: the section ``execution`` of a config.
        axes: any other axis of a run, such as ``seed``, ``prune_inputs`` or ``sampling``.

    Raises:
        FreelunchError: a value is not possible, or the model or the texts cannot be used.
    """
    work, (name, source) = Path(work), _source(model, dtype)
    if not 0 < validation < 1:
        raise FreelunchError(f"validation: {validation} is no share between 0 and 1")
    splits = {"calibration": 1 - validation, "validation": validation}
    raw = {
        "models": {name: source},
        "data": {"texts": {"path": _stored(work, texts, "texts.jsonl"), "splits": splits}},
        "execution": execution or {},
    }
    chosen = {"criterion": criterion, "pattern": pattern, "allocation": allocation, "refinement": refinement}
    drawn = {"sequences": sequences, "validation_sequences": max(1, sequences // 4), "length": length}
    known = {"model": name, "calibration": "texts", "sampling": "packed", "recovery": "none"}
    return Pruned(work, raw, known | chosen | drawn | axes)._made()


def reconstruct(pruned: Pruned, *, window: str | int = "attention_mlp", flow: str = "dense", **axes: Any) -> Pruned:
    """Reconstruct a pruned model, window by window, on the sequences that it was calibrated on.

    Args:
        pruned: what :func:`prune` gave.
        window: such as ``matrix``, ``attention_mlp``, ``block`` or a number of blocks.
        flow: ``dense``, ``sparse_local`` or ``sparse_dense``.
        axes: any other axis, such as ``parametrization``, ``learning_rate`` or ``epochs``.

    Raises:
        FreelunchError: a value is not possible, or the training fails.
    """
    changes = {"recovery": "reconstruct", "window": window, "flow": flow}
    return Pruned(pruned.work, pruned.raw, pruned.axes | changes | axes)._made()


def perplexity(
    model: Pruned | str | Path,
    texts: Sequence[str],
    *,
    length: int = 2048,
    sequences: int | None = None,
    dtype: str | None = None,
    work: str | Path = WORK,
) -> float:
    """Perplexity of a network, or of a dense model, on texts, in windows that do not overlap.

    Args:
        model: what :func:`prune` or :func:`reconstruct` gave, or a Hugging Face directory.
        texts: documents, joined by empty lines in their order.
        length: tokens per window.
        sequences: windows used, from the start of the text; all of them if not given.
        dtype: of the weights of a directory, as in :func:`prune`.
        work: directory for the results of a directory; a network has its own.

    Raises:
        FreelunchError: the texts are too short, or the model cannot be used.
    """
    if isinstance(model, Pruned):
        work, raw, runs, defaults = model.work, model.raw, [model.axes], {}
    else:
        work, (name, source) = Path(work), _source(model, dtype)
        raw, runs, defaults = {"models": {name: source}, "data": {}}, [], {"model": name}
    folder = Path(_stored(work, texts, "test.jsonl")).parent
    data = raw["data"] | {"measured": {"path": str(folder), "splits": {"test": "test.jsonl"}}}
    task = {"data": "measured", "length": length, "sequences": sequences}
    plan = _plan(raw | {"data": data}, runs, task, defaults)
    (metric,) = read_json(_need(work, plan, plan.runs[_SUITE][-1].evaluation).file("metrics.json"))
    return float(metric["value"])


def save(model: Pruned, folder: str | Path) -> Path:
    """Write a network as a Hugging Face directory; pruned weights are exact zeros.

    Args:
        model: what :func:`prune` or :func:`reconstruct` gave.
        folder: must not exist, or be empty.

    Raises:
        FreelunchError: the folder has files, or the network cannot be exported.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FreelunchError(f"{target}: is there already; save to a new or an empty directory")
    plan, subject = model._planned()
    artifact = _need(model.work, plan, ExportSpec(subject=subject))
    for name in [*artifact.files, "manifest.json"]:
        with replacing(target / name) as part:
            shutil.copyfile(artifact.folder / name, part)
    return target


def _plan(
    raw: dict[str, Any], runs: list[dict[str, Any]], task: dict[str, Any], defaults: dict[str, Any] | None = None
) -> Plan:
    suite = {"runs": runs, "evaluate": [task], "defaults": defaults or {}}
    return make_plan(parse_config(raw | {"default_suite": _SUITE, "suites": {_SUITE: suite}}))


def _need(work: Path, plan: Plan, spec: Spec) -> Artifact:
    return Runner.of(plan.config, work).need(spec)


def _source(model: str | Path, dtype: str | None) -> tuple[str, dict[str, str]]:
    """Name and entry of a model directory, as a config has them."""
    path = Path(model).expanduser().resolve()
    if not (path / "config.json").is_file():
        raise FreelunchError(f"{path}: is no model directory (it has no config.json)")
    name = re.sub(r"^[^A-Za-z0-9]+|[^A-Za-z0-9._-]", "-", path.name).lstrip("-._")[:100] or "model"
    if not dtype:
        config = read_object(path / "config.json")
        dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return name, {"path": str(path), "dtype": dtype}


def _stored(work: Path, texts: Sequence[str], name: str) -> str:
    """Write texts to a file in a folder that is named by its contents; returns its path below ``work``."""
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise FreelunchError("texts: are a list of strings")
    if not texts:
        raise FreelunchError("texts: there are none")
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()
    path = Path(RESULTS, "texts", hashlib.sha256(lines).hexdigest()[:16], name)
    if not (work / path).is_file():
        with replacing(work / path) as part:
            part.write_bytes(lines)
    return str(path)
