"""Gaps between criteria over the sizes of models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import pandas as pd
from pandas import DataFrame

from freelunch.errors import FreelunchError
from freelunch.reporting import labels
from freelunch.reporting.comparisons import AXES, Group
from freelunch.reporting.estimates import Estimate, missing, suite, summary
from freelunch.reporting.gaps import gaps
from freelunch.reporting.studies import criteria

SIDES = ("before", "after")
ALIKE = ("family", *AXES, "calibration_length", "criteria")
"""Axes of a series, in the order that they are told in."""


class Series(NamedTuple):
    """Groups along the criterion that differ in the model alone, and the criteria that all of them have.

    ``setting`` are the axes that they share (see :data:`ALIKE`): ``family`` is None where models have none,
    ``calibration_length`` stands for ``calibration_tokens``, and ``criteria`` are those compared, in words.
    """

    setting: dict[str, Any]
    groups: list[Group]
    criteria: list[str]


@dataclass(frozen=True, eq=False)
class Point:
    """A model: its number of parameters, and the gap of every criterion to the best, before and after recovery."""

    model: str
    parameters: int
    gaps: dict[str, dict[str, Estimate]]
    """By side (``before``, ``after``), then by criterion."""


@dataclass(frozen=True, eq=False)
class Scale:
    """Models by size, pruned and recovered in one way; ``setting`` is that of their :class:`Series`.

    ``better`` says whether larger models have lower dense perplexities.
    """

    setting: dict[str, Any]
    points: list[Point]
    better: bool

    @property
    def criteria(self) -> list[str]:
        """Those that all models have on both sides, in reading order."""
        return list(self.points[0].gaps["before"])


def scales(rows: DataFrame, view: str) -> list[Scale]:
    """The :func:`series` of criteria that were measured before and after recovery.

    The gap is the logarithm of a perplexity over that of the best criterion on the same side: models with different
    tokenizers cannot be compared in perplexity itself. All values of one model are of the same seeds.

    Raises:
        FreelunchError: no runs differ in the criterion alone, or such runs are of one model, of models without another
            of their family, or of unknown size.
    """
    groups = criteria(rows, view)
    known = [group for group in groups if group.runs["parameters"].notna().all()]
    found = [_scale(inside) for inside in series(known, _both)]
    if not found:
        raise FreelunchError(
            f"{view} needs criteria compared before and after recovery in at least two models of known size and of one "
            f"family, all else being equal; suite {suite(rows)} has {_models(groups)}"
        )
    return found


def series(groups: Sequence[Group], has: Callable[[Group, str], bool]) -> list[Series]:
    """Series of at least two models of one family that are equal in everything else; models without one are together.

    Models are compared on the criteria that all of them have. A model with few criteria takes none from the others:
    those that have more are a series of their own, on all that they have.

    Args:
        groups: along the criterion.
        has: whether a group has a criterion.
    """
    found: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        found.setdefault(missing(_shared(group).values()), []).append(group)
    return [one for inside in found.values() for one in _nested(inside, has)]


def _shared(group: Group) -> dict[str, Any]:
    """The axes of a group but for the model; the family leads."""
    family, tokens = group.runs["family"].iloc[0], group.setting["calibration_tokens"]
    rest = {name: value for name, value in group.setting.items() if name not in ("model", "calibration_tokens")}
    # tokens follow from it: of two settings with as many sequences it is what tells them apart
    length = tokens // group.setting["sequences"]
    return {"family": None if pd.isna(family) else str(family), **rest, "calibration_length": length}


def _nested(groups: list[Group], has: Callable[[Group, str], bool]) -> list[Series]:
    """All groups on the criteria that all have, and on the criteria of a group that has more those that have them."""
    own = [tuple(value for value in group.values if has(group, value)) for group in groups]
    common = tuple(value for value in own[0] if all(value in values for values in own))
    found = []
    for compared in sorted({common, *own}, key=lambda values: (len(values), values)):
        inside = [group for group, values in zip(groups, own, strict=True) if set(compared) <= set(values)]
        if len(compared) > 1 and len(inside) > 1:
            told = " / ".join(labels.value("criterion", name) for name in compared)
            found.append(Series(_shared(groups[0]) | {"criteria": told}, inside, list(compared)))
    return found


def better(groups: Sequence[Group]) -> bool:
    """Whether no dense model, in the order given, has a higher perplexity than the one before, as far as measured."""
    dense = [found.value for found in (summary(group.dense) for group in groups) if found is not None]
    return all(later <= earlier for earlier, later in pairwise(dense))


def _scale(found: Series) -> Scale:
    ranked = sorted(found.groups, key=lambda group: int(group.runs["parameters"].iloc[0]))
    return Scale(found.setting, [_point(group, found.criteria) for group in ranked], better(ranked))


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
