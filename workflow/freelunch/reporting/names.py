"""The names of all tables and figures. Imports nothing: the config is checked against them in every job."""

from __future__ import annotations

TABLE_NAMES = (
    "calibration", "calibration_size", "cost", "criterion", "drift", "flow", "learning_rate", "loss",
    "parametrization", "perplexity", "published", "retraining", "scale", "seeds", "window", "zero_shot",
)  # fmt: skip
FIGURE_NAMES = (
    "calibration", "calibration_size", "criterion", "drift", "flow", "gain", "learning_rate", "loss", "memory",
    "parametrization", "perplexity", "retraining", "scale", "validation_loss", "window", "zero_shot",
)  # fmt: skip
