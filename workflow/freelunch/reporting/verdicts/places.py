"""Where a comparison was made, in words; and the comparison of windows, series by series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
from pandas import DataFrame

from freelunch.reporting import labels
from freelunch.reporting.comparisons import Group, varying
from freelunch.reporting.estimates import of, ordered
from freelunch.reporting.studies import REPLICA, windows

_ALWAYS = ("criterion", "pattern")
_FOLLOWS = ("core", "calibration_tokens")
"""What is told by another axis."""


def named(settings: Sequence[dict[str, Any]], aside: str = "") -> list[str]:
    """A name for each setting: criterion and pattern, and every axis in which the settings differ.

    Args:
        settings: axes with their values.
        aside: an axis that is not named.
    """
    differing = [axis for axis in varying(settings) if axis not in (aside, *_FOLLOWS)]
    found = []
    for setting in settings:
        axes = [axis for axis in (*_ALWAYS, *(axis for axis in differing if axis not in _ALWAYS)) if axis != aside]
        told = [labels.described(axis, setting[axis]) for axis in axes if not pd.isna(setting.get(axis))]
        found.append(", ".join(told))
    return found


class Windows(NamedTuple):
    """Reconstructions that differ in the window alone: its name, the runs of every window, and the baseline's."""

    where: str
    runs: dict[str, DataFrame]
    alone: DataFrame


def by_window(rows: DataFrame, view: str) -> list[Windows]:
    """The comparisons of windows, apart for norms and biases trained or not.

    Left out are the replica of the official code, which measures a defect, and windows that train some matrices alone.

    Raises:
        FreelunchError: no runs differ in the window alone.
    """
    series: list[tuple[Group, DataFrame, dict[str, Any]]] = []
    for group in windows(rows, view):
        for (extras,) in ordered(group.runs, ["extras"]):
            runs = of(group.runs, ["extras"], [extras])
            series.append((group, runs, group.setting | {"parametrization": runs["parametrization"].iloc[0]}))
    names = named([setting for _, _, setting in series])
    found = []
    for name, (group, runs, _) in zip(names, series, strict=True):
        every = [window for (window,) in ordered(runs, ["window"])]
        kept = [window for window in every if window != REPLICA and not labels.is_control(window)]
        found.append(Windows(name, {window: of(runs, ["window"], [window]) for window in kept}, group.alone))
    return found
