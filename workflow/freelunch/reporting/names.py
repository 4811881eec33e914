"""The names of all tables and figures. Imports nothing: the config is checked against them in every job."""

from __future__ import annotations

TABLE_NAMES = (
    "accuracy", "calibration", "calibration_size", "cost", "criterion", "drift", "flow", "learning_rate", "loss",
    "parametrization", "perplexity", "published", "retraining", "scale", "seeds", "window", "zero_shot",
)  # fmt: skip
FIGURE_NAMES = (
    "accuracy", "allocation", "calibration", "calibration_size", "criterion", "density", "drift", "flow", "gain",
    "learning_rate", "loss", "memory", "parametrization", "perplexity", "retraining", "scale", "transition",
    "validation_loss", "window", "zero_shot",
)  # fmt: skip
