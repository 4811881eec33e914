"""The names of all tables and figures. Imports nothing: the config is checked against them in every job."""

from __future__ import annotations

TABLE_NAMES = ("cost", "perplexity")
FIGURE_NAMES = ("gain", "perplexity", "validation_loss")
