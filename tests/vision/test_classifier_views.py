"""Tables, figures and verdicts of classifiers, on made-up accuracies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from freelunch.errors import FreelunchError
from freelunch.report import plot, render
from freelunch.report.compare import Estimate
from freelunch.report.rows import to_frame
from freelunch.report.verdicts import verdict
from freelunch.report.views import figure, table
from freelunch.vision.classifier_views import accuracies, clear, transitions

VIEWS = ("accuracy", "allocation", "density", "transition")
BASE = {
    "suite": "v", "parameters": 1000, "dataset": "digits", "calibration": "digits", "calibration_images": 64,
    "criterion": "magnitude",
}  # fmt: skip
SPARSITIES = (0.9, 0.95)


def rows_of(
    shrink: float = 0.0, epsilon: float = 0.0, lamp: float = 0.0, seeds: int = 3, variance: float = 0.02
) -> pd.DataFrame:
    """Two networks: recalibration gives 50 % (40 % at the higher sparsity) and ``lamp`` points more under LAMP.

    The shrunk repair gains ``shrink`` points over it, a smaller epsilon ``epsilon`` points.
    """
    records: list[dict[str, Any]] = []
    for model in ("net-a", "net-b"):
        for seed in range(seeds):
            wobble = 0.3 * seed
            run = {key: BASE[key] for key in ("suite", "parameters", "dataset")} | {"model": model, "seed": seed}
            run |= {"run": f"{model}-{seed}", "criterion": "dense", "pattern": "dense", "recovery": "none"}
            records.append(run | {"metric": "accuracy", "split": "test", "value": (95 + wobble) / 100})
            for sparsity in SPARSITIES:
                for allocation in ("erk", "lamp", "global"):
                    records += _pruned(model, seed, sparsity, allocation, wobble, shrink, epsilon, lamp, variance)
    return to_frame(records)


def _pruned(
    model: str, seed: int, sparsity: float, allocation: str, wobble: float, shrink: float, epsilon: float, lamp: float,
    variance: float,
) -> list[dict[str, Any]]:  # fmt: skip
    # the sign turns over with sparsity
    base = 50 - 200 * (sparsity - 0.9) + wobble + lamp * (allocation == "lamp") * (1 if sparsity == 0.9 else -1)
    group = " global" if allocation == "global" else " per matrix"
    values = {"none": 10.0, "recalibrate": base, "recalibrate_epsilon": base + epsilon, "shrink": base + shrink,
              "reconstruct": 90.0}  # fmt: skip
    records = []
    for backend, value in values.items():
        run = BASE | {"model": model, "seed": seed, "sparsity": sparsity, "backend": backend,
                      "pattern": f"{100 * sparsity:g}%{group}",
                      "allocation": "uniform" if allocation == "global" else allocation,
                      "run": f"{model}-{seed}-{sparsity}-{allocation}-{backend}"}  # fmt: skip
        records.append(run | {"metric": "accuracy", "split": "test", "value": value / 100, "stderr": 0.01})
        if backend != "none":
            small = 1e-12 if backend == "recalibrate_epsilon" else 1e-5
            records.append(run | {"metric": "epsilon", "value": small})
        for step, name in enumerate(("stem", "blocks.0", "head"), 1):
            at = run | {"position": name, "step": step}
            if backend == "none":
                records.append(at | {"metric": "layer_density", "value": (1 - sparsity) * step / 2})
                records.append(at | {"metric": "relative_repairability", "value": 0.2 * step})
            else:
                records.append(at | {"metric": "least_variance", "value": variance / step})
                records.append(at | {"metric": "median_variance", "value": 10 * variance})
                records.append(at | {"metric": "faint_channels", "value": 0.1 * step})
    return records


def test_accuracies_are_percent_and_global_is_an_allocation():
    known = accuracies(rows_of(), "view")
    assert {allocation for _, _, allocation, _ in known.seeds} == {"erk", "lamp", "global"}
    assert list(known.seeds["net-a", 0.95, "erk", "recalibrate"]["value"].round(9)) == [40, 40.3, 40.6]


def test_the_table_has_the_best_allocation_of_every_network_sparsity_and_backend():
    built = table("accuracy", rows_of(lamp=5.0))
    assert list(built.columns) == ["none", "recalibrate", "recalibrate_epsilon", "shrink", "reconstruct"]
    assert len(built.lines) == 2 * (1 + 2 * 3)
    cells = {key: dict(zip(built.columns, values, strict=True)) for key, values in built.lines}
    lamp = cells["net-a", "90%", "lamp"]["recalibrate"]
    assert lamp.value == pytest.approx(55.3) and lamp.runs == 3
    assert lamp.stderr == pytest.approx(0.3 / np.sqrt(3), rel=1e-6)
    assert cells["net-a", "dense", None]["none"].value == pytest.approx(95.3)
    shown = render.shown(built)
    lines = shown.frame[(shown.frame["Allocation"] == "LAMP") & (shown.frame["Sparsity"] == "90%")]
    assert list(lines["Recalibrated (%)"]) == ["55.30 ± 0.17"] * 2
    assert shown.bold.loc[lines.index, "Recalibrated (%)"].all()


def test_differences_are_of_common_seeds():
    rows = rows_of(lamp=5.0)
    known = accuracies(rows[~((rows["allocation"] == "lamp") & (rows["seed"] == 2))], "view")
    gap = known.erk_less_lamp("net-a", 0.9, "shrink")
    assert gap is not None and gap.runs == 2
    assert gap.value == pytest.approx(-5) and gap.stderr == pytest.approx(0, abs=1e-9)
    assert known.erk_less_lamp("net-a", 0.9, "layer") is None


@pytest.mark.parametrize(
    ("cell", "expected"),
    [((1.5, 0.5, 3), True), ((1.5, 0.8, 3), False), ((0.9, 0.1, 3), False), ((-3.0, float("nan"), 1), True)],
)
def test_differences_count_if_they_are_large_and_beyond_their_error(cell, expected):
    assert clear(Estimate(*cell)) == expected


@pytest.mark.parametrize(("name", "seeds"), [*((name, 3) for name in VIEWS), ("allocation", 1)])
def test_figures_are_drawn_and_say_what_they_show(name, seeds):
    drawing = figure(name, rows_of(lamp=5.0, shrink=4.0, seeds=seeds))
    assert plot.draw(drawing).axes
    claim, shows, protocol = render.caption(drawing.view, drawing.runs)
    assert claim.startswith("Claim (arXiv:2605.21972): ") and len(shows) > 100
    assert "calibrated on digits, 64 images" in protocol and "accuracy on test images of digits" in protocol


def test_figures_have_the_numbers():
    drawn = plot.draw(figure("allocation", rows_of(lamp=5.0)))
    words = {(each.get_text(), each.get_fontweight()) for each in drawn.axes[0].texts}
    assert words == {("-5.0\n± 0.0", "bold"), ("+5.0\n± 0.0", "bold")}
    left, right, *_ = figure("transition", rows_of(shrink=4.0, epsilon=3.0)).panels
    gains = {series.name: [cell.value for _, cell in series.points] for series in left.series if series.name}
    assert gains["ERK"] == pytest.approx([4.0, 4.0]) and right.levels[0].value == 1e-5
    assert [cell.value for _, cell in right.series[0].points] == pytest.approx([0.02, 0.01, 0.02 / 3])
    density = figure("density", rows_of()).panels[0].series[1]
    assert [cell.value for _, cell in density.points] == pytest.approx([0.025, 0.05, 0.075])


def test_views_and_claims_of_rows_without_classifiers_say_what_they_need():
    rows = to_frame([{"suite": "s", "run": "r", "model": "m", "metric": "ppl@2", "split": "test", "value": 3.0,
                      "criterion": "dense", "pattern": "dense"}])  # fmt: skip
    for name in VIEWS:
        with pytest.raises(FreelunchError, match=r"needs .*classifiers.*; suite s has none"):
            figure(name, rows)
    with pytest.raises(FreelunchError, match="table accuracy needs"):
        table("accuracy", rows)
    assert verdict("allocation", rows).outcome == verdict("transition", rows).outcome == "not testable here"


def test_the_allocation_matters_if_each_is_ahead_somewhere():
    rows = rows_of(lamp=5.0)
    ahead = verdict("allocation", rows)
    assert ahead.outcome == "holds" and [case.seeds for case in ahead.cases] == [3, 3]
    assert ahead.source == "arXiv:2605.21972"
    assert verdict("allocation", rows[rows["sparsity"] != 0.95]).outcome == "holds partly"
    assert verdict("allocation", rows_of()).outcome == "does not hold here"


@pytest.mark.parametrize(
    ("shrink", "epsilon", "outcome"),
    [
        (0.0, 0.0, "does not hold here"),
        (6.0, 0.5, "holds"),
        (6.0, 5.0, "holds partly"),
        (-6.0, 0.0, "does not hold here"),
    ],
)
def test_a_transition_that_a_smaller_epsilon_explains_is_part_of_the_claim(shrink, epsilon, outcome):
    found = verdict("transition", rows_of(shrink=shrink, epsilon=epsilon))
    assert found.outcome == outcome and len(found.cases) == 6
    assert all("0.0067, 667 × epsilon" in case.numbers for case in found.cases)


def test_without_the_control_a_repair_is_not_credited_with_the_whole_claim():
    rows = rows_of(shrink=6.0)
    rows = rows[rows["backend"] != "recalibrate_epsilon"]
    found = verdict("transition", rows)
    assert found.outcome == "holds partly" and "the smaller epsilon was not measured" in found.cases[0].numbers


def test_without_repair_or_recalibration_there_is_no_transition_to_draw():
    for backend in ("shrink", "recalibrate"):
        rows = rows_of()
        with pytest.raises(FreelunchError, match="needs classifiers that were recalibrated and repaired; suite v has"):
            figure("transition", rows[rows["backend"] != backend])


def test_what_differs_in_more_than_the_seed_is_not_averaged():
    rows = rows_of()
    other = rows.assign(run=rows["run"] + "-few", calibration_images=32)
    both = pd.concat([rows, other[other["backend"].notna()]], ignore_index=True)
    with pytest.raises(FreelunchError, match="compares runs of one criterion, kind of pattern and calibration"):
        table("accuracy", both)


def test_the_best_of_the_repairs_is_compared():
    rows = rows_of(shrink=2.0)
    better = rows[rows["backend"] == "shrink"]
    channel = better.assign(backend="channel", run=better["run"] + "-channel", value=better["value"] + 0.03)
    point = transitions(pd.concat([rows, channel], ignore_index=True), "view")[0]
    assert point.repair == "channel" and point.gain.value == pytest.approx(5) and point.gain.runs == 3
    assert point.epsilon == 1e-5


def test_points_of_the_transition_are_compared_at_the_same_seeds():
    (first, *_) = transitions(rows_of(shrink=4.0, epsilon=1.0), "view")
    assert (first.model, first.allocation, first.sparsity, first.gain.runs) == ("net-a", "global", 0.9, 3)
    assert first.gain.value == pytest.approx(4) and first.control is not None
    assert first.control.value == pytest.approx(1) and first.repair == "shrink"
    assert first.variance == pytest.approx(0.02 / 3) and first.recovers and not first.escapes
