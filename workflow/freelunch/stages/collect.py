"""Stage ``collect``: one tidy row per run and metric, with the whole protocol in columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from freelunch.plan.spec import MeasuredSpec
from freelunch.plan.specs import (
    CalibrationSpec,
    EvaluationSpec,
    ModelSpec,
    PrunedSpec,
    ReconstructedSpec,
    RepairedSpec,
    RetrainedSpec,
    Training,
)
from freelunch.pruning.patterns import parse_pattern
from freelunch.report.rows import to_frame, write
from freelunch.results.artifacts import Artifact, read_json

_OF_WINDOWS = {
    "best_validation_loss": "best_loss",
    "unmerged_validation_loss": "unmerged_loss",
    "chosen_learning_rate": "chosen_rate",
}
"""Metrics of windows, and what their records call them."""
_OF_STEPS = set(Training.model_fields) - {"parametrization", "targets", "loss", "seed"}
"""Axes that mean nothing where no step is taken."""


def collect(suite: str, evaluations: Sequence[MeasuredSpec], root: Path, folder: Path) -> None:
    """Write ``rows.csv`` and ``rows.parquet`` of a suite from the manifests of its runs."""
    records: list[dict[str, Any]] = []
    for spec in evaluations:
        module, function = spec.rows.split(":")
        records += getattr(import_module(f"freelunch.{module}"), function)(suite, spec, root)
    frame = to_frame(records)
    for name in ("rows.csv", "rows.parquet"):
        write(frame, folder / name)


def rows_of(suite: str, spec: EvaluationSpec, root: Path) -> Iterator[dict[str, Any]]:
    """The rows of one run: its evaluation's metrics, the sparsity of its matrices, the losses of its windows."""
    artifact = Artifact(root / spec.folder, spec)
    evaluation = artifact.manifest
    overlays: dict[str, dict[str, Any]] = {
        str(overlay.stage): Artifact(root / overlay.folder, overlay).manifest for overlay in spec.overlays
    }
    # what the run itself cost: stages that all runs share (the dense cache) and its evaluation are left out
    # (the time of windows is summed over interruptions, the time of a manifest is that of its last job)
    seconds = sum(manifest.get("train_seconds", manifest["seconds"]) for manifest in overlays.values())
    on_device = [manifest["peak_device_gib"] for manifest in overlays.values() if "peak_device_gib" in manifest]
    # memory of the device where there is one: a small model may be pruned beside it, and the process takes more
    peak = max(on_device or [manifest["peak_gib"] for manifest in overlays.values()], default=None)
    base = Artifact(root / spec.base.folder, spec.base).manifest
    about = {
        "suite": suite,
        "run": spec.name,
        **_protocol(spec, overlays),
        "model_revision": base["model_revision"],
        "parameters": base["parameters"],
        "seconds": seconds if overlays else None,
        "peak_gib": peak,
        "device": evaluation["device"],
        "versions": "; ".join(f"{name} {version}" for name, version in sorted(evaluation["versions"].items())),
    }
    for metric in read_json(artifact.file("metrics.json")):
        kept = ("metric", "dataset", "split", "length", "value", "stderr")
        yield about | {key: metric[key] for key in kept} | {"position": metric.get("position")}
    for name, value in _pruning(overlays).get("matrix_sparsity", {}).items():
        yield about | {"metric": "matrix_sparsity", "position": name, "value": value}
    for window in _trained(overlays).get("windows", []):
        at = {"position": window["window"], "split": "validation"}
        for step, loss in zip(window["validation_steps"], window["losses"], strict=True):
            yield about | at | {"metric": "validation_loss", "step": step, "value": loss}
        for metric, key in _OF_WINDOWS.items():
            if window.get(key) is not None:
                step = window["steps" if key == "unmerged_loss" else "best_step"]
                yield about | at | {"metric": metric, "step": step, "value": window[key]}


def _pruning(overlays: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The manifest of the stage that pruned: the reconstruction's own, if it did."""
    return overlays.get("pruned") or overlays.get("reconstructed") or {}


def _trained(overlays: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The manifest of the stage that trained, if one did."""
    return overlays.get("reconstructed") or overlays.get("retrained") or {}


def _protocol(spec: EvaluationSpec, overlays: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The axes of a run, by column."""
    subject = spec.subject
    train = spec.base.source.train
    named = {"model": spec.base.model, "family": spec.base.source.family, "trained_on": train and train.data}
    if isinstance(subject, ModelSpec):
        return named | {
            "criterion": "dense", "pattern": "dense", "recovery": "none",
            "sparsity": 0.0, "achieved_sparsity": 0.0,
        }  # fmt: skip
    pruned = subject if isinstance(subject, PrunedSpec) else subject.pruned
    calibration = pruned.dense.calibration
    columns: dict[str, Any] = named | {
        "calibration": calibration.data.data,
        "calibration_tokens": calibration.sequences * calibration.length,
        "sequences": calibration.sequences,
        "validation_sequences": calibration.validation_sequences,
        "sampling": calibration.sampling,
        "seed": pruned.seed,
        "criterion": pruned.criterion,
        "pattern": pruned.pattern,
        "sparsity": parse_pattern(pruned.pattern).sparsity,
        "achieved_sparsity": _pruning(overlays)["achieved_sparsity"],
        "allocation": pruned.allocation,
        "refinement": pruned.refinement,
        "prune_inputs": pruned.prune_inputs,
        "recovery": "none",
    }
    if isinstance(subject, RepairedSpec):
        columns |= {"recovery": "repair", "repair": subject.repair}
    elif isinstance(subject, RetrainedSpec):
        columns |= {"recovery": "retrain"} | _training(subject.training, subject.calibration)
    elif isinstance(subject, ReconstructedSpec):
        columns |= {"recovery": "reconstruct", "window": str(subject.window), "flow": subject.flow}
        columns |= _training(subject.training, subject.dense.calibration)
        if subject.closed_form:
            columns = {key: value for key, value in columns.items() if key not in _OF_STEPS}
    counted = ("training_tokens", "search_tokens", "trainable_parameters")
    return columns | {key: _trained(overlays)[key] for key in counted if _trained(overlays)}


def _training(training: Training, calibration: CalibrationSpec) -> dict[str, Any]:
    rate = training.learning_rate
    columns = {key: getattr(training, key) for key in Training.model_fields if key != "seed"}
    return columns | {
        "learning_rate": rate if isinstance(rate, str) else f"{rate:g}",
        "training_sequences": calibration.sequences,
    }
