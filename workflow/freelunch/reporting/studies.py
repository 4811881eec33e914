"""What each comparison compares: which runs answer which question of the paper."""

from __future__ import annotations

from typing import Any

import pandas as pd
from pandas import DataFrame

from freelunch.errors import FreelunchError
from freelunch.reporting import labels
from freelunch.reporting.comparisons import PRUNED, WHERE, Group, along, measured, recovered
from freelunch.reporting.estimates import TRAINING, suite

REPLICA = "official_matrix"
"""A flow that stands among the windows too: a variant of the window ``matrix``."""
EXACT = "matrix_exact"
FLOOR = "random"
"""A criterion that nobody would choose."""
_MATRICES = (EXACT, "matrix", REPLICA, "key_up")


def of_matrices(window: str) -> bool:
    """Whether windows hold single matrices, and no whole submodule."""
    return window in _MATRICES or labels.is_control(window)


def windows(rows: DataFrame, view: str) -> list[Group]:
    """Along the window; norms and biases may be trained or not (column ``extras``).

    Single matrices of which some are ``targets`` are the control of ``key_up``, which trains the same together: a
    window of their own (``labels.control``), as the replica of the official code is.
    What is solved in closed form has no training settings, and stands in every group that is otherwise equal: in those
    that there are without it, or if there are none, beside every window.

    Raises:
        FreelunchError: no runs differ in the window alone.
    """
    runs = measured(rows, view)
    replica = runs["flow"] == REPLICA
    runs = runs.assign(window=runs["window"].mask(replica, REPLICA), flow=runs["flow"].mask(replica, "dense"))
    some = (runs["window"] == "matrix") & (runs["targets"].fillna("all") != "all")
    alone = runs["window"].mask(some, runs["targets"].map(labels.control, na_action="ignore"))
    runs = runs.assign(window=alone, targets=runs["targets"].mask(some, "all"))
    told: Any = DataFrame([parts(text) for text in runs["parametrization"]], index=runs.index, dtype="str")
    runs = runs.assign(core=told[0], extras=told[1])
    exact = runs["window"] == EXACT
    others = runs[~exact]
    # norms may be trained or not: matrices, in which there are none, stand beside both
    free, shared = ("parametrization", "extras"), ("core",)
    groups = along(others, "window", free, shared)
    beside = pd.concat([group.runs for group in groups]) if groups else recovered(others, "reconstruct")
    if exact.any():
        groups = along(pd.concat([others, _adopted(runs[exact], beside)]), "window", free, shared)
    return _some(groups, "window", rows, view)


def criteria(rows: DataFrame, view: str) -> list[Group]:
    """Along the criterion: recovered, and in the baseline of each criterion not recovered, at common seeds.

    Raises:
        FreelunchError: no runs differ in the criterion alone.
    """
    return _some(along(measured(rows, view), "criterion"), "criterion", rows, view)


def chosen(runs: DataFrame) -> DataFrame:
    """The runs but for those pruned at random: how far a floor is behind says nothing of the choice of a criterion."""
    return runs[runs["criterion"] != FLOOR]


def calibrations(rows: DataFrame, view: str) -> list[Group]:
    """Along the data set that was calibrated with.

    Raises:
        FreelunchError: no runs differ in the calibration data alone.
    """
    return _some(along(measured(rows, view), "calibration"), "calibration", rows, view)


def flows(rows: DataFrame, view: str) -> list[Group]:
    """Along the flow.

    Raises:
        FreelunchError: no runs differ in the flow alone.
    """
    return _some(along(measured(rows, view), "flow"), "flow", rows, view)


def losses(rows: DataFrame, view: str) -> list[Group]:
    """Along the loss of reconstruction.

    Raises:
        FreelunchError: no runs differ in the loss alone.
    """
    return _some(_reconstructed(along(measured(rows, view), "loss")), "loss", rows, view)


def parametrizations(rows: DataFrame, view: str) -> list[Group]:
    """Along the parametrization of reconstruction; ``mismatch`` is what merging cost (see :func:`mismatch`).

    Raises:
        FreelunchError: no runs differ in the parametrization alone.
    """
    runs = measured(rows, view)
    runs = runs.assign(mismatch=runs["run"].map(mismatch(rows)).fillna(1.0))
    return _some(_reconstructed(along(runs, "parametrization")), "parametrization", rows, view)


def mismatch(rows: DataFrame) -> dict[str, float]:
    """Of every run whose merging is not exact, the loss of its merged windows over the loss training saw.

    Both are of the same step, the last: a merge that ruins what training found shows even where an earlier state is
    kept. They are sums over the windows that have both; what is not finite makes the ratio so.
    """
    place = ["run", "position", "step"]
    merged, unmerged = (
        rows[rows["metric"] == name].set_index(place)["value"]
        for name in ("validation_loss", "unmerged_validation_loss")
    )
    both = pd.concat([merged.rename("merged"), unmerged.rename("unmerged")], axis=1, join="inner")
    sums = {run: windows.sum(skipna=False) for run, windows in both.groupby("run")}
    # nothing left to lose: no mismatch
    return {
        str(run): 1.0 if not found.any() else float(found["merged"] / found["unmerged"]) for run, found in sums.items()
    }


def sizes(rows: DataFrame, view: str) -> list[Group]:
    """Along the number of sequences: of pruning and training together (axis ``sequences``), and of training alone.

    Of reconstruction if it was run with several; how retraining depends on it is the business of ``retraining``. Both
    have the tokens recovery was given in ``tokens``.

    Raises:
        FreelunchError: no runs differ in the number of sequences alone.
    """
    runs = measured(rows, view)
    length = runs["calibration_tokens"] // runs["sequences"]
    trained = runs["training_sequences"].fillna(runs["sequences"])
    runs = runs.assign(calibration_length=length, tokens=trained * length)
    both = runs[(trained == runs["sequences"]).fillna(False) | (runs["criterion"] == "dense")]
    together = along(both, "sequences", ("calibration_tokens", "training_sequences"), ("calibration_length",))
    alone = along(runs, "training_sequences")
    found = [*together, *alone]
    return _some(_reconstructed(found) or found, "sequences", rows, view)


def _reconstructed(groups: list[Group]) -> list[Group]:
    return [group for group in groups if group.setting["recovery"] == "reconstruct"]


def _some(groups: list[Group], axis: str, rows: DataFrame, view: str) -> list[Group]:
    if not groups:
        what = labels.axis(axis).lower()
        raise FreelunchError(f"{view} needs recovered runs that differ in {what} alone; suite {suite(rows)} has none")
    return groups


def parts(parametrization: Any) -> tuple[str | None, str | None]:
    """How weights are trained, and which of norms and biases are beside them; nothing where nothing is trained."""
    if pd.isna(parametrization):
        return None, None
    parts = parametrization.split(" + ")
    core = [part for part in parts if part not in ("biases", "norms")]
    if not core:
        return parametrization, "only"
    return " + ".join(core), " + ".join(part for part in parts if part not in core) or "frozen"


def _adopted(exact: DataFrame, trained: DataFrame) -> DataFrame:
    """The runs in closed form once for every training setting of the runs that are otherwise equal."""
    alike = [*WHERE, *PRUNED, "recovery", "flow", "targets", "core", "training_sequences"]
    # they solve for the mean squared error
    settings = trained[trained["loss"].isna() | (trained["loss"] == "mse")]
    settings = settings[[*alike, *TRAINING]].drop_duplicates()
    found: Any = exact.drop(columns=list(TRAINING)).merge(settings, on=alike)
    return DataFrame(found[[*exact.columns]])
