"""Stage ``collect``: one tidy row per run and metric, with the whole protocol in columns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..artifacts import Artifact, read_json
from ..patterns import parse_pattern
from ..reporting.rows import to_frame, write
from ..specs import EvaluationSpec, PrunedSpec, ReconstructedSpec


def collect(suite: str, evaluations: list[EvaluationSpec], root: Path, folder: Path) -> None:
    """Write ``rows.csv`` and ``rows.parquet`` of a suite from the manifests of its runs."""
    records = [record for spec in evaluations for record in rows_of(suite, spec, root)]
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
    peak = max((manifest.get("peak_device_gib", manifest["peak_gib"]) for manifest in overlays.values()), default=None)
    about = {
        "suite": suite,
        "run": spec.name,
        **_protocol(spec, overlays),
        "model_revision": Artifact(root / spec.base.folder, spec.base).manifest["model_revision"],
        "seconds": seconds if overlays else None,
        "peak_gib": peak,
        "device": evaluation["device"],
        "versions": "; ".join(f"{name} {version}" for name, version in sorted(evaluation["versions"].items())),
    }
    for metric in read_json(artifact.file("metrics.json")):
        kept = ("metric", "dataset", "split", "length", "value", "stderr")
        yield about | {key: metric[key] for key in kept}
    for name, value in _pruning(overlays).get("matrix_sparsity", {}).items():
        yield about | {"metric": "matrix_sparsity", "position": name, "value": value}
    for window in overlays.get("recovered", {}).get("windows", []):
        at = {"position": window["window"], "split": "validation"}
        for step, loss in zip(window["validation_steps"], window["losses"], strict=True):
            yield about | at | {"metric": "validation_loss", "step": step, "value": loss}
        yield about | at | {
            "metric": "best_validation_loss", "step": window["best_step"], "value": window["best_loss"],
        }  # fmt: skip


def _pruning(overlays: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The manifest of the stage that pruned: the recovery's own, if it did."""
    return overlays.get("pruned") or overlays.get("recovered") or {}


def _protocol(spec: EvaluationSpec, overlays: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The axes of a run, by column."""
    subject = spec.subject
    if not isinstance(subject, PrunedSpec | ReconstructedSpec):
        return {
            "model": subject.model, "criterion": "dense", "pattern": "dense", "recovery": "none",
            "sparsity": 0.0, "achieved_sparsity": 0.0,
        }  # fmt: skip
    pruned = subject if isinstance(subject, PrunedSpec) else subject.pruned
    calibration = pruned.dense.calibration
    columns: dict[str, Any] = {
        "model": calibration.model.model,
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
    if isinstance(subject, ReconstructedSpec):
        taken = ("recovery", "flow", "parametrization", "trains_norms", "loss", "optimizer", "learning_rate", "warmup",
                 "epochs", "batch_size")  # fmt: skip
        columns |= {key: getattr(subject, key) for key in taken}
        columns |= {"window": str(subject.window), "training_tokens": overlays["recovered"]["training_tokens"]}
    return columns
