"""The names of all tables and figures. Imports nothing: the config is checked against them in every job."""

from __future__ import annotations

TABLE_NAMES = (
    "calibration_size", "cost", "flow", "learning_rate", "loss", "parametrization", "perplexity", "retraining",
    "window",
)  # fmt: skip
FIGURE_NAMES = (
    "calibration_size", "drift", "flow", "gain", "learning_rate", "loss", "memory", "parametrization", "perplexity",
    "retraining", "validation_loss", "window",
)  # fmt: skip
