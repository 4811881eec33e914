"""Peak memory against what the plan predicts, on a random-weight model with the widths of an 8B.

Runs the real stages, each in a process of its own, on few tokens: memory is looked at, not time. The same once more
with twice the blocks, and with four times the tokens: what a stage holds should depend on neither.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..__main__ import load
from ..config import Config, PerplexityTask
from ..costs import cost
from ..device import choose
from ..specs import CalibrationSpec, DenseSpec, EvaluationSpec, GramsSpec, ReconstructedSpec, Spec
from .pruning import EIGHT_B
from .runs import alone, pruned_from, random_dense, random_model, run, the_demo, write_text

CASES = {"2 blocks": (2, 1), "4 blocks": (4, 1), "4 × tokens": (2, 4)}
"""Blocks, and times the tokens."""
SEQUENCES, VALIDATION_SEQUENCES = 4, 2
WINDOWS = ("attention_mlp", "block")


@dataclass(frozen=True)
class Peak:
    """Of one stage run, in GiB."""

    predicted: float
    measured: float


def main() -> None:
    """Run the benchmark and print it."""
    demo, _, execution = the_demo()
    config = load([Path("config.yaml")]).config
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_text(root / "text.jsonl", demo)
        found: dict[str, dict[str, Peak]] = {}
        for case, (depth, times) in CASES.items():
            found[case] = {}
            for label, spec in _specs(demo, depth, times, root):
                manifest = alone(run, spec, root, execution)
                if label:
                    found[case][label] = Peak(_predicted(config, depth, spec), _measured(manifest))
                    print(f"{case}, {label}: {found[case][label].measured:.2f} GiB", flush=True)
    print(f"\npeak GiB of {'the accelerator' if choose('auto').type == 'cuda' else 'the process'}, and predicted")
    print(f"{'stage':28}" + "".join(f"{case:>12} {'predicted':>9} {'ratio':>6}" for case in CASES))
    for label in found["2 blocks"]:
        peaks = [found[case][label] for case in CASES]
        line = (f"{each.measured:12.2f} {each.predicted:9.2f} {each.measured / each.predicted:6.2f}" for each in peaks)
        print(f"{label:28}" + "".join(line))


def _predicted(config: Config, depth: int, spec: Spec) -> float:
    model = random_model(EIGHT_B, depth)
    return cost(config.model_copy(update={"models": {model.model: model.source}}), spec).memory / 2**30


def _measured(manifest: dict[str, Any]) -> float:
    return float(manifest.get("peak_device_gib", manifest["peak_gib"]))


def _specs(demo: ReconstructedSpec, depth: int, times: int, root: Path) -> Iterator[tuple[str, Spec]]:
    """Stages in order, with the label of those that are measured."""
    model = random_dense(demo, EIGHT_B, depth, root).calibration
    calibration = CalibrationSpec(
        model=model.model, data=model.data, sequences=SEQUENCES * times,
        validation_sequences=VALIDATION_SEQUENCES * times, length=model.length, sampling="packed", seed=0,
    )  # fmt: skip
    dense = DenseSpec(calibration=calibration)
    yield "model", calibration.model
    yield "", calibration.data
    yield "calibration", calibration
    yield "dense", dense
    wanda = pruned_from(dense, "wanda", "2:4")
    yield "prune (wanda)", wanda
    yield "grams", GramsSpec(dense=dense)
    yield "prune (sparsegpt)", pruned_from(dense, "sparsegpt", "2:4")
    for window in WINDOWS:
        yield f"reconstruct ({window})", demo.changed(pruned=wanda, dense=dense, window=window)
    task = PerplexityTask(data="words", splits=("test",), length=calibration.length, sequences=SEQUENCES * times)
    yield "perplexity", EvaluationSpec(subject=wanda, data=(calibration.data,), tasks=(task,))
