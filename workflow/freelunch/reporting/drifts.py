"""How far the output of every block is from the dense model's: of the block alone, and with all before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from pandas import DataFrame

from freelunch.errors import FreelunchError
from freelunch.reporting import labels
from freelunch.reporting.comparisons import PRUNED, best, preferred, recovered
from freelunch.reporting.estimates import Estimate, estimate, held_out, suite, with_variant
from freelunch.reporting.retraining import PREFERRED
from freelunch.reporting.seeds import aligned, among
from freelunch.reporting.studies import EXACT, REPLICA, parts

LOCAL, ACCUMULATED = "drift_local", "drift_accumulated"
SERIES = ("variant", "flow", "loss", "repair")
"""What tells the lines of a panel apart."""
PANEL = ("model", "dataset", "length", *PRUNED)
_FIXED = {
    "flow": PREFERRED["flow"],
    "loss": PREFERRED["loss"],
    "targets": ("all",),
    "parametrization": ("full + biases + norms",),
}
"""What reconstructions have in common: the first of these values that there is, or else the first that there is."""


def drifts(rows: DataFrame, view: str) -> DataFrame:
    """Drift by panel, series, metric and ``block``: mean over seeds, its error and their number (``Estimate``).

    Of the ways to recover there is one line for each window, for each loss of retraining, and for each repair.
    Reconstructions have one flow, loss, parametrization and the same targets (named in ``fixed``): dense, mean squared
    error and all, if there are such runs; the other flows of the window that the paper recommends are lines of their
    own. Runs trained on more or fewer sequences than pruning saw are left out where there are others. Among runs that
    differ in other settings the lowest validation perplexity chooses. All lines of a panel are of the same seeds.
    ``loss`` is that of retraining alone, ``flow`` that of lines of other flows.

    Raises:
        FreelunchError: no pruned run has a drift on held-out text, or no validation perplexity to choose by.
    """
    found = held_out(rows[rows["metric"].isin([LOCAL, ACCUMULATED]) & (rows["criterion"] != "dense")])
    if found.empty:
        raise FreelunchError(f"{view} needs the drift of pruned runs on held-out text; suite {suite(rows)} has none")
    replica = found["flow"] == REPLICA
    found = found.assign(window=found["window"].mask(replica, REPLICA), flow=found["flow"].mask(replica, "dense"))
    found = _on_the_text_of_pruning(with_variant(found))
    panels = [_controlled(panel) for _, panel in found.groupby(list(PANEL), dropna=False, sort=False)]
    found = pd.concat(panels)
    found = found.assign(kind=_loss(found))
    lines = ["variant", "other", "kind", "repair"]
    found = best(found, [*PANEL, *lines], rows, view)
    panels = [_same_seeds(panel, lines) for _, panel in found.groupby(list(PANEL), dropna=False, sort=False)]
    found = pd.concat(panels)
    found = found.assign(loss=_loss(found), flow=found["other"], block=pd.to_numeric(found["position"]).astype(int))
    by = [*PANEL, *SERIES, "metric", "block"]
    groups = found.groupby(by, dropna=False, sort=False)
    cells = [estimate(list(group["value"])) for _, group in groups]
    frame = DataFrame(cells, columns=list(Estimate._fields), index=groups["fixed"].first().index)
    return frame.assign(fixed=groups["fixed"].first()).reset_index()


def name(values: Sequence[Any]) -> str:
    """What a series is called: ``Attention / MLP``, ``Retraining, KL``."""
    variant, *others = values
    told = [labels.value("variant", variant)]
    told += [labels.value(axis, value) for axis, value in zip(SERIES[1:], others, strict=True) if not pd.isna(value)]
    return ", ".join(told)


def _loss(runs: DataFrame) -> pd.Series[str]:
    return runs["loss"].where(runs["recovery"] == "retrain")


def _on_the_text_of_pruning(runs: DataFrame) -> DataFrame:
    """Without the runs of a recovery that trained on another amount of text, if some trained on that."""
    same = runs["training_sequences"].fillna(runs["sequences"]).eq(runs["sequences"]).fillna(True).astype(bool)
    some = runs["recovery"].isin(set(runs.loc[same, "recovery"]))
    return runs[same | ~some]


def _controlled(panel: DataFrame) -> DataFrame:
    """A panel with its reconstructions in one setting; the flow of those with another is in ``other``."""
    local = recovered(panel, "reconstruct")
    base = local
    held: dict[str, str | None] = {}
    for axis, wanted in _FIXED.items():
        held[axis] = preferred(base[base["window"] != EXACT], axis, wanted)
        base = base[_has(base, axis, held[axis])]
    window = preferred(base, "window", PREFERRED["window"])
    beside = local[(local["window"] == window) & (local["flow"] != held["flow"])]
    for axis in (axis for axis in _FIXED if axis != "flow"):
        beside = beside[_has(beside, axis, held[axis])]
    rest = panel[panel["recovery"] != "reconstruct"]
    kept = pd.concat([rest.assign(other=None), base.assign(other=None), beside.assign(other=beside["flow"])])
    told = [f"{labels.axis(axis).lower()} {labels.value(axis, value)}" for axis, value in held.items() if value]
    kept["other"] = kept["other"].astype("str")
    kept["fixed"] = ", ".join(told)
    return kept


def _has(runs: DataFrame, axis: str, value: Any) -> pd.Series[bool]:
    """Which runs have a value of an axis; least squares is solved for whatever is trained beside the weights."""
    found: pd.Series[bool] = runs[axis] == value
    if value is None or axis == "loss":
        found |= runs["window"] == EXACT
    elif axis == "parametrization":
        cores = runs[axis].map(lambda text: parts(text)[0])
        found |= (runs["window"] == EXACT) & (cores == parts(value)[0])
    return found


def _same_seeds(panel: DataFrame, lines: Sequence[str]) -> DataFrame:
    """The lines of a panel at the seeds that all of them have; what is not recovered follows the others."""
    lone = panel["recovery"] == labels.NOT_RECOVERED
    if lone.all():
        return panel
    kept = aligned(panel[~lone], lines)
    return pd.concat([kept, among(panel[lone], kept)])
