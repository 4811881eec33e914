"""The stages, each in a module of its own: what makes the results of a spec, and the hash of the code that does.

Imports no stage, and so neither torch nor transformers, before one is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache

from freelunch.inputs.questions import FOLDER
from freelunch.plan.spec import Spec
from freelunch.plan.specs import EvaluationSpec
from freelunch.results.code import code_digest

FUNCTIONS = {
    "models": ("prepare_model", "prepare_model"),
    "data": ("prepare_data", "prepare_data"),
    "questions": ("questions", "questions"),
    "calibration": ("calibrate", "calibrate"),
    "dense": ("dense", "dense"),
    "grams": ("grams", "grams"),
    "pruned": ("prune", "prune"),
    "shards": ("reconstruct", "shard"),
    "reconstructed": ("reconstruct", "reconstruct"),
    "retrained": ("retrain", "retrain"),
    "repaired": ("repair", "repair"),
    "evaluation": ("evaluate", "evaluate"),
    "export": ("export", "run_export"),
    "images": ("images", "prepare_images"),
    "classifiers": ("classifiers", "train_classifier"),
    "sparse_classifiers": ("sparse_classifiers", "sparse_classifier"),
}
"""By the folder of a stage, the module of ``stages`` and the function in it that makes its results."""


def code_of(spec: Spec) -> str:
    """Hash of the code that a stage runs for a spec: its module, the methods it uses, local tasks that it asks."""
    asked = isinstance(spec, EvaluationSpec) and bool(spec.questions)
    return _digest((f"stages.{FUNCTIONS[spec.stage][0]}", *spec.modules), asked)


@cache  # the same for most jobs of a stage, of which there may be thousands
def _digest(modules: tuple[str, ...], asked: bool) -> str:
    return code_digest(modules, sorted(FOLDER.glob("*.yaml")) if asked else ())


def function_of(spec: Spec) -> Callable[..., None]:
    """The function that makes a spec's result; imports torch."""
    module, name = FUNCTIONS[spec.stage]
    found: Callable[..., None] = getattr(importlib.import_module(f"freelunch.stages.{module}"), name)
    return found
