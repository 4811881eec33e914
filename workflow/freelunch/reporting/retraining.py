"""Local reconstruction beside retraining: which runs are compared, over how many training tokens and operations.

Compute is counted, not timed: 6 operations per parameter of the model and token (two forward, four backward), for the
tokens trained on and those that searches of learning rates took. The windows of a reconstruction tile the network, so
what they train on together is one pass over the model for every token. Seconds would be those of one machine and its
load, and of one choice of batches; they are in the table. Left out on both sides are the dense pass, which runs share,
and recomputed activations; embedding and head, which reconstruction does not run, are counted on both.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from pandas import DataFrame

from freelunch.errors import FreelunchError
from freelunch.reporting import labels
from freelunch.reporting.comparisons import PRUNED, WHERE, Group, best, measured, preferred, recovered
from freelunch.reporting.estimates import of, ordered, suite
from freelunch.reporting.seeds import aligned, among

SERIES = ("recovery", "loss", "parametrization", "window", "targets", "repair")
"""What tells the lines of a comparison apart."""
PREFERRED: dict[str, tuple[str, ...]] = {"window": ("attention_mlp", "block"), "flow": ("dense",), "loss": ("mse",)}
"""Reconstruction as the paper recommends it, where a suite has others too."""


def races(rows: DataFrame, view: str) -> list[Group]:
    """For each way to prune: reconstruction and retraining along the training tokens; repairs train on none.

    Runs also have ``operations``, missing where the size of the model is not known.

    Reconstruction is that of one window, flow and loss: attention and MLP apart, dense and mean squared error if there
    are such runs. It has the parametrizations that retraining has, if they have some in common. Among runs that differ
    in other settings alone (learning rate, epochs, ...) the lowest validation perplexity chooses. Of all that is left
    there are the seeds that all have.

    Raises:
        FreelunchError: there are no retrained runs beside reconstructed ones that were pruned alike, or no validation
            perplexities to choose by.
    """
    runs = measured(rows, view)
    place = [*WHERE, *PRUNED]
    found = []
    for _, group in runs[runs["criterion"] != "dense"].groupby(place, dropna=False, sort=False):
        retrained, local = recovered(group, "retrain"), _preferred(recovered(group, "reconstruct"))
        if retrained.empty or local.empty:
            continue
        common = local["parametrization"].isin(retrained["parametrization"])
        trained = pd.concat([local[common] if common.any() else local, retrained])
        trained = trained.assign(budget=_budget(trained))
        trained = best(trained, ["dataset", "length", *SERIES, "flow", "budget"], rows, view)
        repaired = recovered(group, "repair").assign(training_tokens=0, search_tokens=0, budget=0)
        every = aligned(pd.concat([repaired, trained]), [*SERIES, "budget"])
        if not {"reconstruct", "retrain"} <= set(every["recovery"]):
            continue
        every = every.assign(operations=_mean(every, _operations(every)))
        every = every.assign(training_tokens=_mean(every, every["training_tokens"]).round().astype("Int64"))
        setting: dict[str, Any] = {name: group[name].iloc[0] for name in place}
        dense = of(runs[runs["criterion"] == "dense"], WHERE, [setting[name] for name in WHERE])
        alone = group[group["recovery"] == labels.NOT_RECOVERED].assign(training_tokens=0, operations=0.0)
        alone = among(alone, every)
        found.append(Group("training_tokens", setting, every, alone, dense))
    if not found:
        raise FreelunchError(
            f"{view} needs reconstructed and retrained runs that were pruned alike; suite {suite(rows)} has none"
        )
    return sorted(found, key=lambda group: [labels.order(name, group.setting[name]) for name in place])


def series(group: Group) -> list[tuple[dict[str, Any], DataFrame]]:
    """The lines of a comparison in reading order, each with what it is and its runs."""
    lines = ordered(group.runs, SERIES)
    return [(dict(zip(SERIES, line, strict=True)), of(group.runs, SERIES, line)) for line in lines]


def _budget(runs: DataFrame) -> pd.Series[int]:
    """Tokens a run was given to train on; those it took are fewer where it stopped early, which a seed decides."""
    length = runs["calibration_tokens"] // runs["sequences"]
    return (runs["epochs"] * runs["training_sequences"] * length).fillna(runs["training_tokens"])


def _operations(runs: DataFrame) -> pd.Series[float]:
    """Operations of training and of searching rates; missing where the size of the model is."""
    tokens = runs["training_tokens"].astype("float64") + runs["search_tokens"].astype("float64").fillna(0)
    return 6 * runs["parameters"].astype("float64") * tokens


def _mean(runs: DataFrame, values: pd.Series[Any]) -> pd.Series[Any]:
    """A number of every setting, the mean over its seeds."""
    by = [runs[name] for name in (*SERIES, "budget")]
    return values.astype("float64").groupby(by, dropna=False, sort=False).transform("mean")


def _preferred(runs: DataFrame) -> DataFrame:
    for axis, wanted in PREFERRED.items():
        chosen = preferred(runs, axis, wanted)
        if chosen is not None:
            runs = runs[runs[axis] == chosen]
    return runs
