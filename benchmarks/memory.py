"""Peak memory against what the plan predicts, on a random-weight model with the widths of an 8B.

Runs the real stages, each in a process of its own, on few tokens: memory is looked at, not time. The same with twice
and four times the blocks, and with four times the calibration tokens: what a stage holds should depend on neither. What
takes longest is run in the first case alone, at the end.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freelunch.__main__ import load
from freelunch.costs import cost
from freelunch.engine.device import choose
from freelunch.plan.config import Config, PerplexityTask, Questions, ZeroShotTask
from freelunch.plan.spec import Spec
from freelunch.plan.specs import (
    CalibrationSpec,
    DenseSpec,
    EvaluationSpec,
    GramsSpec,
    QuestionsSpec,
    ReconstructedSpec,
)

from .pruning import EIGHT_B
from .runs import alone, pruned_from, random_dense, random_model, run, the_demo, write_text

CASES = {"1 block": (1, 1), "2 blocks": (2, 1), "4 blocks": (4, 1), "4 × tokens": (1, 4)}
"""Blocks, and times the calibration tokens."""
ONCE = {"prune (sparsegpt)", "reconstruct (matrix)", "zero-shot"}
"""What is run in the first case alone."""
SEQUENCES, VALIDATION_SEQUENCES, LENGTH = 4, 4, 64
WINDOWS = ("matrix", "attention_mlp", "block")


@dataclass(frozen=True)
class Peak:
    """Of one stage run, in GiB."""

    predicted: float
    measured: float

    def __str__(self) -> str:
        return f"{self.measured:12.2f} {self.predicted:9.2f} {self.measured / self.predicted:6.2f}"


def main() -> None:
    """Run the benchmark and print it."""
    demo, _, execution = the_demo()
    # batches of one size in all cases
    execution = execution.model_copy(update={"stream_tokens": SEQUENCES * LENGTH})
    config = load([Path("config.yaml")]).config.model_copy(update={"execution": execution})
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_text(root / "text.jsonl", demo)
        found: dict[str, dict[str, Peak]] = {case: {} for case in CASES}
        first, *_ = CASES
        for case, last in [*((case, False) for case in CASES), (first, True)]:
            depth, times = CASES[case]
            for label, spec in _specs(demo, depth, times, root):
                later = bool(label) and (label in ONCE) != last
                if later or (root / spec.manifest).exists():
                    continue
                manifest = alone(run, spec, root, execution)
                if label:
                    found[case][label] = Peak(_predicted(config, depth, spec), _measured(manifest))
                    print(f"{case:12} {label:28} {found[case][label]}", flush=True)
    print(f"\npeak GiB of {'the accelerator' if choose('auto').type == 'cuda' else 'the process'}, and predicted")
    print(f"{'stage':28}" + "".join(f"{case:>12} {'predicted':>9} {'ratio':>6}" for case in CASES))
    for label in found[first]:
        line = (str(found[case][label]) if label in found[case] else f"{'-':>12} {'':16}" for case in CASES)
        print(f"{label:28}" + "".join(line).rstrip())


def _predicted(config: Config, depth: int, spec: Spec) -> float:
    model = random_model(EIGHT_B, depth)
    peak = cost(spec, config.model_copy(update={"models": {model.model: model.source}}))
    return (peak.device or peak.host + peak.mapped) / 2**30


def _measured(manifest: dict[str, Any]) -> float:
    return float(manifest.get("peak_device_gib", manifest["peak_gib"]))


def _specs(demo: ReconstructedSpec, depth: int, times: int, root: Path) -> Iterator[tuple[str, Spec]]:
    """Stages in order, with the label of those that are measured; those that take longest at the end."""
    model = random_dense(demo, EIGHT_B, depth, root).calibration
    calibration = CalibrationSpec(
        model=model.model, data=model.data, sequences=SEQUENCES * times, validation_sequences=VALIDATION_SEQUENCES,
        length=LENGTH, sampling="packed", seed=0,
    )  # fmt: skip
    dense = DenseSpec(calibration=calibration)
    yield "model", calibration.model
    yield "", calibration.data
    yield "calibration", calibration
    yield "dense", dense
    wanda = pruned_from(dense, "wanda", "2:4")
    yield "prune (wanda)", wanda
    yield "grams", GramsSpec(dense=dense)
    for window in WINDOWS:
        yield f"reconstruct ({window})", demo.changed(pruned=wanda, dense=dense, window=window)
    task = PerplexityTask(data="words", splits=("test",), length=LENGTH, sequences=SEQUENCES * times)
    yield "perplexity", EvaluationSpec(subject=wanda, data=(calibration.data,), tasks=(task,))
    questions = QuestionsSpec(data=calibration.data, fields=Questions())
    yield "", questions
    asked = ZeroShotTask(metric="zero_shot", tasks=("article_last_word",), data="words", limit=4)
    yield "zero-shot", EvaluationSpec(subject=wanda, data=(questions,), tasks=(asked,))
    yield "prune (sparsegpt)", pruned_from(dense, "sparsegpt", "2:4")
