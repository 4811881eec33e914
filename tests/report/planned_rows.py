"""Rows that a suite of a config would have, with numbers that are made up: what its tables and figures are given."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import pandas as pd

from freelunch.plan.config import DriftTask, PerplexityTask, ZeroShotTask
from freelunch.plan.facts import facts_of
from freelunch.plan.plan import Plan
from freelunch.plan.specs import EvaluationSpec, ReconstructedSpec, RetrainedSpec
from freelunch.report import rows as tidy
from freelunch.stages import collect

CHANCE = {"boolq": 0.5, "rte": 0.5, "winogrande": 0.5, "article_last_word": 0.0}
NORMALIZED = {"hellaswag", "arc_easy", "arc_challenge", "openbookqa"}


def planned_rows(plan: Plan, suite: str) -> pd.DataFrame:
    """One row per run and metric; losses of windows are those of one window."""
    return tidy.to_frame([row for run in plan.runs[suite] for row in _rows(plan, suite, run.evaluation)])


def _rows(plan: Plan, suite: str, spec: EvaluationSpec) -> Iterator[dict[str, Any]]:
    numbers = random.Random(spec.name)
    facts = facts_of(plan.config, spec.base.model)
    manifest = {"achieved_sparsity": 0.5}
    if isinstance(spec.subject, RetrainedSpec | ReconstructedSpec):
        manifest |= {"search_tokens": 2**12, "trainable_parameters": facts.parameters // 2}
        drawn = spec.subject.calibration if isinstance(spec.subject, RetrainedSpec) else spec.subject.dense.calibration
        manifest["training_tokens"] = drawn.sequences * drawn.length
    overlays = {str(overlay.stage): manifest for overlay in spec.overlays}
    about = {
        "suite": suite, "run": spec.name, "model_revision": "r", "parameters": facts.parameters, "device": "cpu",
        "versions": "torch 1", "seconds": 10 * numbers.random() if overlays else None,
        "peak_gib": 1 + numbers.random() if overlays else None,
        **collect._protocol(spec, overlays),
    }  # fmt: skip
    for task in spec.tasks:
        if isinstance(task, PerplexityTask):
            for split in task.splits:
                yield about | {
                    "metric": f"ppl@{task.length}", "dataset": task.data, "split": split, "length": task.length,
                    "value": math.exp(2 + numbers.random()), "stderr": 0.1,
                }  # fmt: skip
        elif isinstance(task, DriftTask):
            at = {"dataset": task.data, "split": task.splits[0], "length": task.length}
            for block in range(facts.num_hidden_layers):
                for metric in ("drift_local", "drift_accumulated"):
                    value = 0.1 + numbers.random()
                    yield about | at | {"metric": metric, "position": str(block), "value": value, "stderr": 0.01}
        elif isinstance(task, ZeroShotTask):
            for name in task.tasks:
                at = {"dataset": name, "split": "test"}
                yield about | at | {"metric": "chance", "value": CHANCE.get(name, 0.25)}
                for metric in ("acc", "acc_norm") if name in NORMALIZED else ("acc",):
                    yield about | at | {"metric": metric, "value": numbers.random(), "stderr": 0.02}
            yield about | {"metric": "acc_mean", "value": numbers.random(), "stderr": 0.01}
    if isinstance(spec.subject, RetrainedSpec | ReconstructedSpec):
        for step, loss in ((0, 1.0), (8, numbers.random())):
            at = {"position": "0.mlp", "split": "validation", "step": step}
            yield about | at | {"metric": "validation_loss", "value": loss}
        yield about | at | {"metric": "best_validation_loss", "value": loss}
