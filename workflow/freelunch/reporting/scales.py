"""Gaps between criteria over the sizes of models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
from pandas import DataFrame

from ..errors import FreelunchError
from .comparisons import Group
from .estimates import Estimate, missing, suite
from .gaps import gaps
from .studies import criteria

SIDES = ("before", "after")


@dataclass(frozen=True, eq=False)
class Point:
    """A model: its number of parameters, and the gap of every criterion to the best, before and after recovery."""

    model: str
    parameters: int
    gaps: dict[str, dict[str, Estimate]]
    """By side (``before``, ``after``), then by criterion."""


@dataclass(frozen=True, eq=False)
class Scale:
    """Models by size, pruned and recovered in one way; ``setting`` are the axes that they share."""

    setting: dict[str, Any]
    points: list[Point]

    @property
    def criteria(self) -> list[str]:
        """Those that all models have on both sides, in reading order."""
        return list(self.points[0].gaps["before"])


def scales(rows: DataFrame, view: str) -> list[Scale]:
    """Series of at least two models that are equal in everything else, with the criteria that all of them have.

    The gap is the logarithm of a perplexity over that of the best criterion on the same side: models with different
    tokenizers cannot be compared in perplexity itself. All values of one model are of the same seeds.

    Raises:
        FreelunchError: no runs differ in the criterion alone, or such runs are of one model or of unknown size.
    """
    groups = criteria(rows, view)
    found: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        if group.runs["parameters"].notna().all():
            found.setdefault(_beside(group), []).append(group)
    series = [_scale(inside) for inside in found.values() if len(inside) > 1]
    kept = [scale for scale in series if scale is not None]
    if not kept:
        raise FreelunchError(
            f"{view} needs criteria compared before and after recovery in at least two models of known size, all "
            f"else being equal; suite {suite(rows)} has {_models(groups)}"
        )
    return kept


def _beside(group: Group) -> tuple[Any, ...]:
    return missing(value for name, value in group.setting.items() if name != "model")


def _scale(groups: list[Group]) -> Scale | None:
    common = [value for value in groups[0].values if all(_both(group, value) for group in groups)]
    if len(common) < 2:
        return None
    ranked = sorted(groups, key=lambda group: int(group.runs["parameters"].iloc[0]))
    setting = {name: value for name, value in ranked[0].setting.items() if name != "model"}
    return Scale(setting, [_point(group, common) for group in ranked])


def _both(group: Group, value: Any) -> bool:
    return value in group.values and group.baseline(value) is not None


def _point(group: Group, common: list[str]) -> Point:
    runs = {"before": group.alone, "after": group.runs}
    sides = {side: gaps(runs[side][runs[side][group.axis].isin(common)]) for side in SIDES}
    told = {side: {name: found[name] for name in common} for side, found in sides.items()}
    return Point(str(group.setting["model"]), int(group.runs["parameters"].iloc[0]), told)


def _models(groups: list[Group]) -> str:
    runs = pd.concat([group.runs for group in groups])
    unknown = sorted(runs[runs["parameters"].isna()]["model"].unique())
    models = ", ".join(sorted(runs["model"].unique()))
    return models + (f" (of unknown size: {', '.join(unknown)})" if unknown else "")
