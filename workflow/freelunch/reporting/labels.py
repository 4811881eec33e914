"""What axes and their values are called in tables and figures, and the order they come in."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import pandas as pd

from freelunch.errors import FreelunchError
from freelunch.prune.patterns import NM, Structured, parse_pattern

NOT_RECOVERED = "none"

_AXES = {
    "calibration_tokens": "Calibration tokens",
    "domain": "Calibration distribution",
    "measure": "Metric",
    "length": "Length (tokens)",
    "mismatch": "Merge mismatch",
    "peak_gib": "Peak memory (GiB)",
    "prune_inputs": "Pruning inputs",
    "seconds": "Time (s)",
    "sequences": "Calibration sequences",
    "clip": "Gradient clipping",
    "achieved_sparsity": "Achieved sparsity (fraction)",
    "calibration": "Calibration data",
    "parameters": "Parameters",
    "operations": "Training compute (FLOP)",
    "search_tokens": "Search tokens",
    "selection": "Selected by",
    "targets": "Trained matrices",
    "trainable_parameters": "Trained parameters",
    "variant": "Recovery",
}
_VALUES = {
    "criterion": {
        "dense": "Dense",
        "random": "Random",
        "magnitude": "Magnitude",
        "wanda": "Wanda",
        "ria": "RIA",
        "sparsegpt": "SparseGPT",
        "flap": "FLAP",
    },
    "allocation": {
        "uniform": "Uniform",
        "global": "Global threshold",
        "erk": "ERK",
        "lamp": "LAMP",
        "owl": "OWL",
        "repairability": "Repairability",
        "given": "Given",
    },
    "backend": {
        "none": "Not repaired",
        "recalibrate_cumulative": "Recalibrated (cumulative)",
        "recalibrate": "Recalibrated",
        "recalibrate_epsilon": "Recalibrated (epsilon 1e-12)",
        "layer": "Repaired (per layer)",
        "channel": "Repaired (per channel)",
        "shrink": "Repaired (shrunk)",
        "reconstruct": "Reconstructed",
    },
    "refinement": {
        "none": "None",
        "dsnot": "DSnoT",
        "exact": "Exact update",
        "admm": "ADMM update",
        "bias": "Bias compensation",
    },
    "optimizer": {"adamw": "AdamW", "sgd": "SGD"},
    "recovery": {
        NOT_RECOVERED: "Not recovered",
        "repair": "Repair",
        "reconstruct": "Reconstruction",
        "retrain": "Retraining",
    },
    "repair": {"channel": "per channel", "layer": "per matrix", "shrink": "shrunk"},
    "flow": {
        "dense": "Dense",
        "sparse_local": "Sparse input, own target",
        "sparse_dense": "Sparse input, dense target",
        "official_matrix": "Official code, per matrix",
    },
    "loss": {
        "mse": "MSE",
        "normalized_mse": "Normalised MSE",
        "cosine": "Cosine",
        "cross_entropy": "Cross-entropy",
        "kl": "KL (distillation)",
    },
    "parametrization": {
        "full + biases + norms": "All parameters",
        "full": "Weights alone",
        "biases": "Biases",
        "norms": "Norms",
        "biases + norms": "Biases + norms",
        "mask_lora": "MaskLoRA",
        "scale_lora": "ScaleLoRA",
        "lora_prune": "LoRA-Prune",
        "spp": "SPP",
    },
    "domain": {"in": "in (calibration data)", "out": "out"},
    "selection": {"validation": "Validation perplexity", "test": "Test perplexity", "auto": "Search in each window"},
    "variant": {
        "chance": "Chance",
        "dense": "Dense",
        NOT_RECOVERED: "Not recovered",
        "retrain": "Retraining",
        "repair": "Repair",
    },
}
_WINDOWS = {
    "matrix_exact": "Matrix, exact",
    "matrix": "Matrix",
    "official_matrix": "Matrix, official code",
    "key_up": "Key / up",
    "attention_mlp": "Attention / MLP",
    "block": "Block",
    "model": "Model",
    "attention": "Attention half",
    "mlp": "MLP half",
}
_HALVES = {"dense": -1.0, NOT_RECOVERED: 0.0, "matrix_exact": 0.1, "matrix": 0.2, "official_matrix": 0.3, "key_up": 0.4,
           "attention_mlp": 1.0, "block": 2.0, "model": 1e6, "repair": 1e7, "retrain": 1e8}  # fmt: skip
"""Size of windows in half-blocks, and the place of what has no window beside them."""
_ORDERED = ("criterion", "allocation", "refinement")
_AS_LISTED = ("recovery", "backend", "flow", "loss", "parametrization", "selection")
_PLAIN = {"full": "Weights", "biases": "biases", "norms": "norms"}
_CONTROL = re.compile(r"matrix \((.+)\)")
_PARTS = re.compile(r"([^+(]+)(\([^)]*\))?")


def control(targets: str) -> str:
    """What the window ``matrix`` is called where it trains some matrices alone: ``matrix (k_proj + up_proj)``."""
    return f"matrix ({targets})"


def is_control(window: str) -> bool:
    """Whether a window is called by :func:`control`."""
    return _CONTROL.fullmatch(window) is not None


UNTESTED = " (validation)"
"""Follows the name of a data set of which another split than ``test`` is shown."""


def perplexity(datasets: Iterable[str]) -> str:
    """What perplexities are called together: those of the test split, unless one is of another."""
    return "Perplexity" if any(name.endswith(UNTESTED) for name in datasets) else "Test perplexity"


def axis(name: str) -> str:
    """Heading of a column of the rows; ``variant`` is how a run was recovered, if it was."""
    return _AXES.get(name, name.replace("_", " ").capitalize())


def value(name: str, found: Any) -> str:
    """What a value of an axis is called."""
    if name in _ORDERED:
        return _method(name, str(found))
    if name in _VALUES and found in _VALUES[name]:
        return _VALUES[name][found]
    if name == "parametrization":
        return _joined(str(found))
    if name in ("window", "variant"):
        text = str(found)
        if alone := _CONTROL.fullmatch(text):
            return f"Matrix, {alone[1]} only"
        plain = text if "_proj" in text else text.replace("_", " ").capitalize()
        return _WINDOWS.get(text) or (f"{text} blocks" if text.isdecimal() else plain)
    if name == "parameters":
        return compact(float(found))
    if isinstance(found, float) and math.isfinite(found):
        return f"{found:g}"
    return str(found)


def described(name: str, found: Any) -> str:
    """A value with its axis, where the value alone does not say what it is."""
    alone = ("model", "criterion", "pattern", "variant", "dataset", "window", "parametrization", "recovery")
    if name == "length":
        return f"{found} tokens"
    return value(name, found) if name in alone else f"{axis(name)}: {value(name, found)}"


def compact(number: float) -> str:
    """A count in three digits: 512, 32.8k, 1.05M, 6.7G, 1.2P."""
    for unit, name in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"


def order(name: str, found: Any) -> tuple[Any, ...]:
    """Sorting key of an axis' values: windows by size, patterns by kind and sparsity, models by name and the numbers
    in it, what is missing first."""
    if name in ("window", "variant"):
        return (_size(str(found)), str(found))
    if name == "learning_rate" and isinstance(found, str):
        return (1, 0.0, found) if found == "auto" else (0, float(found), "")
    if name in _AS_LISTED and isinstance(found, str):
        listed = [*_VALUES[name]]
        return (0, listed.index(found) if found in listed else len(listed), found)
    if name in _ORDERED and isinstance(found, str):
        known, base = list(_VALUES[name]), found.split("(")[0].split(" +")[0]
        return (known.index(base) if base in known else len(known), 0.0, found)
    if name == "pattern":
        try:
            pattern = parse_pattern(found)
        except FreelunchError:
            return (3, 0.0, str(found))
        kind = 1 if isinstance(pattern, NM) else 2 if isinstance(pattern, Structured) else 0
        return (kind, pattern.sparsity, str(found))
    if isinstance(found, str):
        # numbers in names by what they are: llama-3m before llama-15m
        return (1, 0.0, re.sub(r"\d+(\.\d+)?", lambda number: f"{float(number[0]):020.6f}", found))
    return (-1, 0.0, "") if pd.isna(found) else (0, float(found), "")


def _method(name: str, text: str) -> str:
    """A method with its settings, or several joined by +: ``ria(alpha=1)`` gives RIA (alpha=1)."""
    parts = [(match[1].strip(), _short(match[2] or "")) for match in _PARTS.finditer(text)]
    return " + ".join(f"{_VALUES[name].get(part, part)} {settings}".strip() for part, settings in parts)


def _joined(text: str) -> str:
    """A parametrization: ``lora_prune(rank=8) + norms`` gives LoRA-Prune (rank=8) + norms."""
    parts = [_PLAIN.get(part) or _method("parametrization", part) for part in text.split(" + ")]
    return " + ".join(parts)


def _short(settings: str) -> str:
    """A list of numbers, one for each block, by its ends."""
    numbers = settings.strip("()").split(", ")
    if len(numbers) < 4 or "=" in settings:
        return settings
    return f"({min(numbers, key=float)} to {max(numbers, key=float)})"


def _size(window: str) -> float:
    if is_control(window):
        return (_HALVES["official_matrix"] + _HALVES["key_up"]) / 2
    return 2.0 * int(window) if window.isdecimal() else _HALVES.get(window, math.inf)
