"""The rows of classifiers: what ``collect`` makes of their manifests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from freelunch.pruning.patterns import parse_pattern
from freelunch.results.artifacts import Artifact, read_json
from freelunch.vision.runs import ClassifierSpec, SparseClassifierSpec

RECOVERIES = {"none": "none", "reconstruct": "reconstruct", "channel": "repair", "layer": "repair", "shrink": "repair"}
"""What language models' rows call a backend; the others recalibrate."""


def classifier_rows(suite: str, spec: ClassifierSpec | SparseClassifierSpec, root: Path) -> Iterator[dict[str, Any]]:
    """The rows of a dense classifier, or of a pruned one after every backend, which is a run of its own."""
    dense = spec if isinstance(spec, ClassifierSpec) else spec.dense
    artifact = Artifact(root / spec.folder, spec)
    manifest = artifact.manifest
    images = dense.images.images
    about = {
        "suite": suite,
        "model": dense.model,
        "seed": dense.seed,
        "parameters": Artifact(root / dense.folder, dense).manifest["parameters"],
        "device": manifest["device"],
        "versions": "; ".join(f"{name} {version}" for name, version in sorted(manifest["versions"].items())),
        "dataset": images,
    }
    if isinstance(spec, ClassifierSpec):
        about |= {"run": spec.name, "criterion": "dense", "pattern": "dense", "recovery": "none", "sparsity": 0.0,
                  "achieved_sparsity": 0.0}  # fmt: skip
        for split, value in manifest["accuracy"].items():
            yield about | {"metric": "accuracy", "split": split, "value": value, "stderr": None}
        return
    about |= {
        "calibration": images,
        "calibration_images": spec.calibration_images,
        "criterion": spec.criterion,
        "pattern": spec.pattern,
        "sparsity": parse_pattern(spec.pattern).sparsity,
        "achieved_sparsity": manifest["achieved_sparsity"],
        "allocation": spec.allocation,
        "peak_gib": manifest.get("peak_device_gib", manifest["peak_gib"]),
    }
    for record in read_json(artifact.file("metrics.json")):
        backend = record["backend"]
        run = about | {
            "run": f"{spec.label}-{backend}-{spec.key}",
            "backend": backend,
            "recovery": RECOVERIES.get(backend, "recalibrate"),
            "repair": backend if RECOVERIES.get(backend) == "repair" else None,
            "seconds": manifest["backend_seconds"].get(backend),
        }
        yield run | {key: record.get(key) for key in ("metric", "split", "position", "step", "value", "stderr")}
