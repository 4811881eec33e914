"""Perplexity by criterion and pattern: not recovered, after recovery with each window, and of the dense model."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame

from freelunch.reporting import findings, labels, style, variants
from freelunch.reporting.comparisons import varying
from freelunch.reporting.estimates import perplexities

_VIEW = "figure perplexity"


@style.applied()
def draw(rows: DataFrame) -> Figure:
    """Marks on a logarithmic scale with their values; the dense model is a dashed line.

    Raises:
        FreelunchError: no pruned run has a perplexity on held-out text.
    """
    return variants.draw(perplexities(rows, _VIEW), _scale, _label)


def _label(at: variants.Setting) -> str:
    return f"{labels.perplexity([at['dataset']])}\n({at['dataset']}, {at['length']} tokens)"


def _scale(axis: Axes, values: list[float], _: variants.Setting) -> None:
    known = [value for value in values if value > 0] or [1.0, 10.0]
    style.log_scale(axis, min(known), max(known), margin=0.13)


def caption(rows: DataFrame) -> str:
    """Of every setting the perplexities, from the dense model's to that of the last recovery.

    A setting is called by its criterion, its pattern, and every other level in which settings differ.
    """
    found = perplexities(rows, _VIEW)
    differing = varying(dict(zip(found.levels, setting, strict=True)) for setting in found.settings)
    sentences = []
    for setting in found.settings:
        told = [(labels.value("variant", variant), found.cells.get((setting, variant))) for variant in found.variants]
        named = [labels.described(name, value) for name, value in zip(found.levels, setting, strict=True)
                 if name in ("criterion", "pattern", *differing) and not pd.isna(value)]  # fmt: skip
        sentences.append((", ".join(named), findings.listed(told)))
    return f"Here: {findings.joined(sentences)}"
