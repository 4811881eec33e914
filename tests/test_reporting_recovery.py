"""Comparisons of recoveries: which runs are compared, what is selected, and the tables and figures of both."""

from __future__ import annotations

import csv
import io
import math
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from freelunch import reporting
from freelunch.errors import FreelunchError
from freelunch.reporting import (
    claims,
    comparisons,
    curves,
    drifts,
    rendering,
    retraining,
    rows,
    studies,
    style,
    sweeps,
)
from freelunch.reporting.estimates import Estimate, of, ordered
from suites import ALL, EXACT, LORA, RETRAINED, Record, Suite, everything


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return everything().frame


def on(dataset: str, groups: list[comparisons.Group]) -> list[comparisons.Group]:
    return [group for group in groups if group.setting["dataset"] == dataset]


def table(name: str, frame: pd.DataFrame) -> list[dict[str, str]]:
    lines = csv.DictReader(io.StringIO(rendering.render(reporting.tabulate(name, frame), "csv")))
    return [line for line in lines if line.get("dataset", "wiki") == "wiki"]


# --- groups ----------------------------------------------------------------------------------------------------------


def test_a_group_is_equal_in_every_axis_but_one() -> None:
    suite = Suite()
    suite.add(130.0)
    suite.local(30.0)
    suite.local(32.0, seed=1)
    suite.local(29.0, flow="sparse_dense")
    suite.local(28.0, flow="sparse_local", epochs=3)  # differs in two axes
    suite.local(27.0, flow="sparse_local", clip=1.0)
    suite.local(26.0, flow="sparse_local", validation_sequences=16)
    (group,) = on("wiki", comparisons.along(comparisons.measured(suite.frame, "x"), "flow"))
    assert group.values == ["dense", "sparse_dense"]
    assert group.estimate("dense") == Estimate(30.0, 0.3, 1), "of the seed that both have"
    assert group.estimate("sparse_dense") == Estimate(29.0, 0.3, 1)
    assert group.baseline() == Estimate(130.0, 0.3, 1)
    assert list(group.dense["value"]) == [14.0]
    (german,) = on("german", comparisons.along(comparisons.measured(suite.frame, "x"), "flow"))
    assert german.estimate("sparse_dense") == Estimate(87.0, 0.3, 1)
    assert german.baseline() == Estimate(390.0, 0.3, 1)


def test_baselines_are_pruned_alike() -> None:
    suite = Suite()
    suite.add(130.0)
    suite.add(90.0, criterion="ria")
    suite.add(80.0, sequences=64, calibration_tokens=64 * 256)
    suite.local(30.0)
    suite.local(31.0, loss="cosine")
    (group,) = on("wiki", studies.losses(suite.frame, "x"))
    assert list(group.alone["value"]) == [130.0]


def test_the_replica_is_a_flow_and_a_window_and_what_is_exact_stands_with_all() -> None:
    suite = Suite()
    suite.local(43.0, window="matrix")
    suite.local(47.0, window="matrix", flow="official_matrix")
    suite.local(30.0)
    suite.local(31.5, parametrization="full")
    suite.local(29.0, learning_rate="0.01")
    suite.add(44.0, **EXACT)
    (group,) = on("wiki", studies.windows(suite.frame, "x"))
    assert group.values == ["matrix_exact", "matrix", "official_matrix", "attention_mlp"]
    assert sorted(group.at("attention_mlp")["extras"]) == ["biases + norms", "frozen"]
    pair = suite.frame[suite.frame["window"] != "matrix"]
    fast, slow = on("wiki", studies.windows(pair, "x"))
    assert (fast.setting["learning_rate"], slow.setting["learning_rate"]) == ("0.001", "0.01")
    assert fast.values == slow.values == ["matrix_exact", "attention_mlp"]
    (flow,) = on("wiki", studies.flows(suite.frame, "x"))
    assert flow.values == ["dense", "official_matrix"]
    assert flow.setting["window"] == "matrix"


def test_key_and_up_together_stand_beside_the_same_matrices_each_for_itself() -> None:
    suite = Suite()
    suite.local(43.0, window="matrix")
    suite.local(41.0, window="matrix", targets="k_proj + up_proj")
    suite.local(48.0, window="matrix", targets="k_proj + up_proj", flow="official_matrix")  # of another group
    suite.local(36.0, window="key_up")
    suite.local(30.0)
    suite.local(29.0, targets="k_proj + up_proj")  # so is this
    group, other = on("wiki", studies.windows(suite.frame, "x"))
    assert other.values == ["official_matrix", "attention_mlp"]
    control = "matrix (k_proj + up_proj)"
    assert group.values == ["matrix", control, "key_up", "attention_mlp"]
    assert group.estimate(control) == Estimate(41.0, 0.3, 1)
    lines = {line["window"]: float(line["perplexity"]) for line in table("window", suite.frame)}
    assert (lines[control], lines["key_up"], lines["matrix"]) == (41.0, 36.0, 43.0)
    assert "| Matrix, k\\_proj + up\\_proj only |" in rendering.render(reporting.tabulate("window", suite.frame), "md")
    said = reporting.describe("window", suite.frame)
    assert "(Key / up 36.0 against Matrix, k_proj + up_proj only 41.0)" in said
    (legend,) = reporting.draw("memory", suite.frame).legends
    assert "Matrix, k_proj + up_proj only" in {text.get_text() for text in legend.texts}


def test_sizes_are_those_of_training_alone_or_of_pruning_too() -> None:
    suite = Suite()
    for sequences, value in ((32, 130.0), (64, 128.0)):
        suite.add(value, sequences=sequences, calibration_tokens=sequences * 256)
    suite.local(30.0)
    suite.local(28.0, training_sequences=64)
    suite.local(27.0, training_sequences=64, sequences=64, calibration_tokens=64 * 256)
    suite.local(20.0, training_sequences=64, sequences=64, calibration_tokens=64 * 512)  # longer: in no group
    together, alone = on("wiki", studies.sizes(suite.frame, "x"))
    assert [together.estimate(value) for value in together.values] == [Estimate(30.0, 0.3), Estimate(27.0, 0.3)]
    assert [together.estimate(value, "tokens") for value in together.values] == [Estimate(8192.0), Estimate(16384.0)]
    assert [together.baseline(value) for value in together.values] == [Estimate(130.0, 0.3), Estimate(128.0, 0.3)]
    assert [alone.estimate(value) for value in alone.values] == [Estimate(30.0, 0.3), Estimate(28.0, 0.3)]
    assert alone.baseline(64) == Estimate(130.0, 0.3)


def test_of_equal_cells_validation_chooses() -> None:
    suite = Suite()
    suite.local(30.0, validation=40.0)
    suite.local(35.0, validation=33.0, learning_rate="0.01")
    suite.local(20.0, validation=math.nan, learning_rate="0.1")
    suite.local(36.0, validation=math.inf, learning_rate="0.2")
    found = comparisons.best(comparisons.measured(suite.frame, "x"), ["dataset", "criterion"], suite.frame, "x")
    chosen = found[(found["criterion"] == "wanda") & (found["dataset"] == "german")]
    assert list(chosen["value"]) == [105.0]
    without = suite.frame
    without = without[(without["split"] == "test") | (without["learning_rate"] != "0.01")]
    with pytest.raises(FreelunchError, match="figure x needs the validation perplexity of every run"):
        comparisons.best(without[without["split"] == "test"], ["dataset", "criterion"], without, "figure x")


# --- seeds -----------------------------------------------------------------------------------------------------------


def test_values_are_compared_at_the_seeds_that_all_have() -> None:
    suite = Suite()
    for seed in (0, 1, 2):
        suite.add(130.0 + 10 * seed, seed=seed)
        suite.local(30.0 + seed, seed=seed)
    for seed in (1, 2):
        suite.local(29.0 + seed, seed=seed, flow="sparse_dense")
    suite.local(20.0, seed=7, flow="sparse_local")  # of no common seed
    (group,) = on("wiki", studies.flows(suite.frame, "x"))
    assert group.values == ["dense", "sparse_dense"]
    assert group.estimate("dense") == Estimate(31.5, 0.5, 2)
    assert group.estimate("sparse_dense") == Estimate(30.5, 0.5, 2)
    assert group.baseline() == Estimate(145.0, 5.0, 2)
    assert len(group.dense) == 1
    lines = {line["flow"]: line for line in table("flow", suite.frame)}
    assert {name: (line["perplexity"], line["perplexity_runs"], line["none"]) for name, line in lines.items()} == {
        "dense": ("31.5", "2", "145.0"), "sparse_dense": ("30.5", "2", "145.0"),
    }  # fmt: skip


def test_runs_without_a_common_seed_are_not_compared() -> None:
    suite = Suite()
    suite.local(30.0, seed=0)
    suite.local(29.0, seed=1, flow="sparse_dense")
    with pytest.raises(FreelunchError, match="needs recovered runs that differ in flow alone"):
        studies.flows(suite.frame, "x")


def test_lines_of_one_group_are_of_the_same_seeds_too() -> None:
    suite = Suite()
    for seed, window in product((0, 1), ("matrix", "block")):
        suite.local(30.0 + seed, window=window, seed=seed)
    for window in ("matrix", "block"):
        suite.local(40.0, window=window, seed=1, parametrization="full")
    (group,) = on("wiki", studies.windows(suite.frame, "x"))
    assert set(group.runs["seed"]) == {1}
    assert len(group.runs) == 4


def test_settings_compete_at_common_seeds() -> None:
    suite = Suite()
    for seed, value in ((0, 30.0), (1, 10.0)):
        suite.local(value, validation=value, seed=seed)
    suite.local(28.0, validation=28.0, learning_rate="0.01")  # better than the other at seed 0
    suite.local(5.0, validation=5.0, learning_rate="0.1", seed=9)  # of no common seed
    found = comparisons.best(comparisons.measured(suite.frame, "x"), ["dataset", "criterion"], suite.frame, "x")
    assert set(found[found["criterion"] == "wanda"]["learning_rate"]) == {"0.01"}


def test_retraining_and_reconstruction_are_of_the_same_seeds() -> None:
    suite = Suite()
    for seed in (0, 1):
        suite.add(130.0 + 10 * seed, seed=seed)
        suite.local(30.0 + seed, seed=seed)
        suite.add(90.0 + seed, recovery="repair", repair="layer", seed=seed)
    suite.add(40.0, **(RETRAINED | {"seed": 1}))
    (group,) = on("wiki", retraining.races(suite.frame, "x"))
    assert sorted(group.runs["value"]) == [31.0, 40.0, 91.0]
    assert group.baseline() == Estimate(140.0, 0.3, 1)
    suite = Suite()
    suite.local(30.0)
    suite.add(40.0, **(RETRAINED | {"seed": 1}))
    with pytest.raises(FreelunchError, match="needs reconstructed and retrained runs"):
        retraining.races(suite.frame, "x")


def test_seeds_that_stop_early_at_different_steps_are_one_point() -> None:
    suite = Suite()
    for seed, tokens in ((0, 16384), (1, 8192)):
        suite.local(30.0 + seed, seed=seed, training_tokens=tokens, patience=3)
        suite.add(40.0, **(RETRAINED | {"seed": seed}))
    (group,) = on("wiki", retraining.races(suite.frame, "x"))
    (point,) = {int(tokens) for tokens in group.runs[group.runs["recovery"] == "reconstruct"]["training_tokens"]}
    assert point == 12288
    assert group.estimate(12288) == Estimate(30.5, 0.5, 2)


# --- drift -----------------------------------------------------------------------------------------------------------


def drifting(suite: Suite, run: Record, value: float) -> None:
    for metric, block in product(("drift_local", "drift_accumulated"), range(2)):
        suite.records.append(run | {"metric": metric, "dataset": "wiki", "split": "test", "length": 256,
                                    "position": f"{block}", "value": value})  # fmt: skip


def test_drift_compares_windows_in_one_setting() -> None:
    suite = Suite()
    # value is the drift that a line shows; validation perplexities would choose what is not of the setting
    for value, validation, changes in [
        (0.1, 40.0, {}), (0.2, 30.0, {"learning_rate": "0.01"}), (0.9, 10.0, {"loss": "cosine"}),
        (0.9, 10.0, {"parametrization": LORA}), (0.9, 10.0, {"targets": "k_proj + up_proj"}),
        (0.3, 20.0, {"window": "matrix"}), (0.9, 10.0, {"window": "matrix", "targets": "k_proj + up_proj"}),
        (0.4, 20.0, {"window": "matrix", "flow": "official_matrix"}), (0.5, 20.0, {"flow": "sparse_local"}),
        (0.9, 10.0, {"flow": "sparse_local", "loss": "cosine"}), (0.9, 10.0, {"window": "block", "loss": "cosine"}),
        (0.9, 10.0, {"window": "block", "flow": "sparse_local"}),
        (0.6, 20.0, EXACT | {"parametrization": "full"}), (0.9, 10.0, {"training_sequences": 128}),
    ]:  # fmt: skip
        drifting(suite, suite.local(30.0, validation, **changes), value)
    drifting(suite, suite.local(30.0, 30.0, learning_rate="0.01", seed=1), 0.9)  # the other lines lack this seed
    drifting(suite, suite.add(130.0), 0.7)
    drifting(suite, suite.add(140.0, seed=1), 0.9)
    drifting(suite, suite.add(35.0, **RETRAINED), 0.8)
    drifting(suite, suite.add(25.0, **RETRAINED | {"training_sequences": 128}), 0.9)
    found = drifts.drifts(suite.frame, "x")
    assert {drifts.name(line): set(of(found, drifts.SERIES, line)["value"]) for line in
            ordered(found, drifts.SERIES)} == {
        "Not recovered": {0.7}, "Matrix, exact": {0.6}, "Matrix": {0.3}, "Matrix, official code": {0.4},
        "Attention / MLP": {0.2}, "Attention / MLP, Sparse input, own target": {0.5},
        "Retraining, Cross-entropy": {0.8},
    }  # fmt: skip
    said = reporting.describe("drift", suite.frame)
    assert "flow Dense, loss MSE, trained matrices all, parametrization All parameters" in said


# --- selection -------------------------------------------------------------------------------------------------------


def sweep_suite() -> Suite:
    suite = Suite()
    for rate, epochs, test, validation in [
        ("0.0001", 1, 33.0, 31.0), ("0.0001", 2, 31.0, 30.0), ("0.01", 1, 29.0, 32.0), ("0.01", 2, math.nan, math.nan),
    ]:  # fmt: skip
        for seed in (0, 1):
            suite.local(test + seed, validation + seed, learning_rate=rate, epochs=epochs, seed=seed)
    for epochs, test, validation in ((1, 28.0, 40.0), (2, 30.0, 31.0)):
        for seed in (0, 1):
            suite.local(test + seed, validation, learning_rate="auto", epochs=epochs, seed=seed, seconds=250.0)
    return suite


def test_validation_and_test_select() -> None:
    (found,) = [s for s in sweeps.sweeps(sweep_suite().frame, "x") if s.group.setting["dataset"] == "wiki"]
    by_validation, by_test, auto = found.choices()
    assert (by_validation.point.learning_rate, by_validation.point.epochs) == ("0.0001", 2)
    assert by_validation.point.test == Estimate(31.5, 0.5, 2)
    assert (by_test.point.learning_rate, by_test.point.epochs, by_test.point.test.value) == ("0.01", 1, 29.5)
    assert (by_validation.runs, by_validation.seconds, by_test.runs, by_test.seconds) == (8, 800.0, 8, 800.0)
    assert (auto.by, auto.point.epochs, auto.point.test.value) == ("auto", 2, 30.5)
    assert (auto.runs, auto.seconds) == (4, 1000.0), "all lengths that were tried"


def test_learning_rate_table() -> None:
    lines = table("learning_rate", sweep_suite().frame)
    found = [tuple(line[name] for name in ("selection", "learning_rate", "epochs", "perplexity", "seconds", "trials"))
             for line in lines]  # fmt: skip
    assert found == [
        ("validation", "0.0001", "2", "31.5", "800.0", "8"),
        ("test", "0.01", "1", "29.5", "800.0", "8"),
        ("auto", "auto", "2", "30.5", "1000.0", "4"),
    ]


def test_learning_rate_figure_draws_the_search_that_was_chosen() -> None:
    figure = reporting.draw("learning_rate", sweep_suite().frame)
    assert "30.5" in {text.get_text() for text in figure.axes[0].texts}
    assert "28.5" not in {text.get_text() for text in figure.axes[0].texts}
    said = reporting.describe("learning_rate", sweep_suite().frame)
    assert said.count("search in each window") == 1
    assert "search in each window: test 30.5 ± 0.5 (2 epochs; 4 runs, 1,000 s)" in said


def test_selection_is_of_the_seeds_that_all_settings_have() -> None:
    suite = sweep_suite()
    for seed in (2, 3):
        suite.local(10.0, 10.0, learning_rate="0.0001", epochs=1, seed=seed)
    (found,) = [s for s in sweeps.sweeps(suite.frame, "x") if s.group.setting["dataset"] == "wiki"]
    by_validation, by_test, _ = found.choices()
    assert (by_validation.point.epochs, by_test.point.learning_rate, by_test.runs) == (2, "0.01", 8)


def test_a_sweep_says_so_where_validation_is_on_other_text_than_the_axis() -> None:
    frame = sweep_suite().frame
    said = "Validation perplexity is on text of wiki, not of the axis. "
    assert said not in reporting.describe("learning_rate", frame)
    other = frame.assign(dataset=frame["dataset"].mask(frame["split"] == "test", "news"))
    assert said in reporting.describe("learning_rate", other)


def test_a_sweep_without_validation_perplexity_is_refused() -> None:
    frame = sweep_suite().frame
    with pytest.raises(FreelunchError, match="table learning_rate needs the validation perplexity"):
        reporting.tabulate("learning_rate", frame[frame["split"] == "test"])


# --- merging ---------------------------------------------------------------------------------------------------------


def test_mismatch_is_the_ratio_of_sums_and_one_where_merging_is_exact() -> None:
    suite = Suite()
    suite.local(30.0)
    run = suite.local(33.0, parametrization="lora_prune")
    for position, merged, unmerged in (("0.mlp", 3.0, 2.0), ("1.mlp", 2.0, 2.0), ("2.mlp", 9.0, None)):
        at = run | {"split": "validation", "position": position}
        # the state that is saved is an earlier one, of a merge that cost nothing
        suite.records.append(at | {"metric": "best_validation_loss", "step": 0, "value": 1.0})
        suite.records += [at | {"metric": "validation_loss", "step": step, "value": v} for step, v in
                          ((0, 1.0), (3, merged))]  # fmt: skip
        if unmerged:
            suite.records.append(at | {"metric": "unmerged_validation_loss", "step": 3, "value": unmerged})
    lines = {line["parametrization"]: line for line in table("parametrization", suite.frame)}
    assert {name: float(line["mismatch"]) for name, line in lines.items()} == {ALL: 1.0, "lora_prune": 5 / 4}
    assert float(lines["lora_prune"]["perplexity"]) == 33.0
    assert lines[ALL]["trainable_parameters"] == "1000"


# --- tables ----------------------------------------------------------------------------------------------------------

COMPARED = ("calibration_size", "flow", "learning_rate", "loss", "parametrization", "retraining", "window")


@pytest.mark.parametrize("name", COMPARED)
def test_tables_of_a_whole_suite(frame: pd.DataFrame, name: str) -> None:
    built = reporting.tabulate(name, frame)
    assert len(built.lines) > 3
    assert len({str(key) for key, _ in built.lines}) == len(built.lines)
    for kind in rendering.KINDS:
        assert "nan" not in rendering.render(built, kind).lower()


def test_window_table_has_means_and_errors(frame: pd.DataFrame) -> None:
    found = table("window", frame)
    lines = {(line["pattern"], line["window"], line["parametrization"]): line for line in found}
    assert len(lines) == len(found)
    block = lines["2:4", "block", ALL]
    assert float(block["perplexity"]) == pytest.approx(30.1)
    assert (float(block["perplexity_stderr"]), block["perplexity_runs"]) == (pytest.approx(0.2), "2")
    assert (float(block["dense"]), float(block["none"])) == (14.0, pytest.approx(130.2))
    assert float(lines["2:4", "official_matrix", ALL]["perplexity"]) == pytest.approx(47.2)
    assert float(lines["2:4", "matrix_exact", ALL]["perplexity"]) == pytest.approx(44.2)


def test_retraining_table_has_what_trains_on_nothing(frame: pd.DataFrame) -> None:
    lines = [line for line in table("retraining", frame) if line["pattern"] == "2:4"]
    tokens = {(line["recovery"], line["repair"]): line["training_tokens"] for line in lines if line["repair"]}
    assert tokens == {("repair", name): "0" for name in ("channel", "layer", "shrink")}
    assert [line["training_tokens"] for line in lines if line["recovery"] == "none"] == ["0"]
    assert {line["loss"] for line in lines if line["recovery"] == "retrain"} == {"cross_entropy", "kl"}
    kl = [line for line in lines if line["loss"] == "kl" and line["parametrization"] == ALL]
    assert [line["training_tokens"] for line in kl] == ["16384", "65536", "262144"]
    assert float(kl[0]["perplexity"]) == pytest.approx(60 / 2**0.3 + 1.2)


# --- figures ---------------------------------------------------------------------------------------------------------

FIGURES = (*COMPARED, "drift", "memory")


@pytest.mark.parametrize("name", FIGURES)
def test_figures_of_a_whole_suite(frame: pd.DataFrame, tmp_path: Path, name: str) -> None:
    figure = reporting.draw(name, frame)
    for path in style.save(figure, tmp_path / name):
        assert path.stat().st_size > 5000
    panels = [axis for axis in figure.axes if axis.axison]
    assert all(axis.get_title() for axis in panels)
    assert panels[0].get_ylabel() and panels[-1].get_xlabel()
    said = reporting.describe(name, frame)
    assert claims.CLAIMS[name] in said
    assert ". Wanda, 2:4" in said
    (small,) = [text for text in figure.texts if text.get_text().startswith("Claim")]
    assert small.get_text().split() == said.split()


@pytest.mark.parametrize("name", FIGURES)
def test_what_is_not_compared_is_named(name: str) -> None:
    suite = Suite()
    suite.add(130.0)
    suite.local(30.0)
    with pytest.raises(FreelunchError, match=rf"figure {name} needs .*; suite s has none"):
        reporting.draw(name, suite.frame)
    if name in COMPARED:
        with pytest.raises(FreelunchError, match=rf"table {name} needs .*; suite s has none"):
            reporting.tabulate(name, suite.frame)


def test_findings_hold_the_numbers_of_the_rows() -> None:
    suite = Suite()
    suite.add(130.0)
    suite.local(43.1, window="matrix")
    suite.local(30.2)
    suite.local(29.9, window="block")
    said = reporting.describe("window", suite.frame)
    assert "Matrix 43.1, Attention / MLP 30.2, Block 29.9" in said
    assert "dense 14.0, not recovered 130" in said
    assert "up: 1.01)" in said
    changed = [r | {"value": 2 * r["value"]} if r.get("window") == "block" else r for r in suite.records]
    assert "Block 59.8" in reporting.describe("window", rows.to_frame(changed))
    assert reporting.describe("cost", suite.frame) == ""


def test_findings_say_how_much_more_retraining_needs() -> None:
    suite = Suite()
    suite.local(30.0)
    for tokens, value in ((16384, 50.0), (65536, 35.0), (262144, 29.0)):
        suite.add(value, **(RETRAINED | {"epochs": tokens // 8192, "training_tokens": tokens}))
    said = reporting.describe("retraining", suite.frame)
    assert "[reaches reconstruction on 16.4k with 16 times the tokens and 16 times the compute]" in said
    worse = [r | {"value": 31.0} if r["value"] == 29.0 else r for r in suite.records]
    said = reporting.describe("retraining", rows.to_frame(worse))
    assert "[does not reach reconstruction on 16.4k with 16 times the tokens and 16 times the compute]" in said


def test_lines_far_off_are_arrows_and_do_not_squeeze_the_rest() -> None:
    suite = Suite()
    suite.add(1300.0)
    suite.local(30.0)
    suite.local(31.0, loss="cosine")
    axis = reporting.draw("loss", suite.frame).axes[0]
    assert {"1,300 ↑", "14.0 ↓", "30.0", "31.0"} == {text.get_text() for text in axis.texts}
    low, high = axis.get_ylim()
    assert 25 < low < 30 < 31 < high < 40


def test_a_figure_that_nobody_could_open_is_refused() -> None:
    with pytest.raises(FreelunchError, match="200 rows of panels is too tall"):
        style.grid(200, 1, 2.0)


def test_window_figure_joins_no_matrices(frame: pd.DataFrame) -> None:
    first = reporting.draw("window", frame).axes[0]
    drawn = [container[0] for container in first.containers]
    joined = [line for line in drawn if line.get_linestyle() == "-"]
    ticks = [label.get_text() for label in first.get_xticklabels()]
    assert ticks[:3] == ["Matrix, exact", "Matrix", "Matrix, official code"]
    assert ticks[3:5] == ["Matrix, k_proj + up_proj only", "Key / up"]
    assert joined and all(min(line.get_xdata()) > 4.5 for line in joined)


def test_values_that_are_not_finite_are_shown() -> None:
    suite = Suite()
    suite.add(130.0)
    suite.local(math.inf, window="matrix")
    suite.local(30.2)
    suite.local(29.9, window="block")
    figure = reporting.draw("window", suite.frame)
    assert "∞" in {text.get_text() for text in figure.axes[0].texts}
    assert "Matrix ∞" in reporting.describe("window", suite.frame)
    assert "∞" in rendering.render(reporting.tabulate("window", suite.frame), "md")


def test_drift_figure_shows_local_and_accumulated(frame: pd.DataFrame) -> None:
    figure = reporting.draw("drift", frame)
    titles = [axis.get_title().split("\n")[-1] for axis in figure.axes]
    kinds = ["block alone", "with all blocks before"]
    assert titles.count(f"wiki (calibration data): {kinds[0]}") == len(titles) // 4
    assert [title.split(": ")[1] for title in titles] == kinds * (len(titles) // 2)
    shown = drifts.drifts(frame, "x")
    shown = shown[shown["variant"] != "repair"]
    wanted = {metric: set(map(tuple, rows.groupby([*drifts.PANEL, *drifts.SERIES], dropna=False)["value"].agg(list)))
              for metric, rows in shown.groupby("metric")}  # fmt: skip
    for axis, metric in zip(figure.axes[:2], (drifts.LOCAL, drifts.ACCUMULATED), strict=True):
        assert {tuple(line.get_ydata()) for line in axis.lines if len(line.get_xdata()) == 8} <= wanted[metric]
        assert len(axis.lines) >= 2
        strokes = [(line.get_color(), str(line._unscaled_dash_pattern)) for line in axis.lines]
        assert len(set(strokes)) == len(strokes), "lines are told apart between their marks too"
    keys = [(line.get_color(), str(line._unscaled_dash_pattern)) for line in figure.legends[0].get_lines()]
    assert keys == strokes
    assert "at the last block, mean of blocks alone" in reporting.describe("drift", frame)


# --- windows of matrices in the older figures ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gain", "validation_loss"])
def test_windows_of_matrices_are_grouped_by_matrix_and_retraining_is_left_out(name: str) -> None:
    suite = Suite()
    places = {"matrix": ["0.self_attn.k_proj", "0.mlp.up_proj", "1.self_attn.k_proj"], "key_up": ["0.key_up"],
              "model": ["model", "0-1"], "3": ["0-2"]}  # fmt: skip
    for window, positions in places.items():
        run = suite.local(30.0, window=window)
        for position in positions:
            at = run | {"split": "validation", "position": position}
            suite.records += [at | {"metric": "validation_loss", "step": step, "value": 2.0 - step} for step in (0, 1)]
            suite.records.append(at | {"metric": "best_validation_loss", "step": 1, "value": 1.0})
    run = suite.add(30.0, **RETRAINED) | {"split": "validation", "position": "model"}
    suite.records.append(run | {"metric": "validation_loss", "step": 0, "value": 3.0})
    suite.records.append(run | {"metric": "best_validation_loss", "step": 0, "value": 3.0})
    reporting.draw(name, suite.frame).canvas.draw()
    found, _ = curves.gains(suite.frame, "x")
    assert sorted(found["part"].unique()) == ["3", "k_proj", "key_up", "model", "up_proj"]
    np.testing.assert_allclose(found["ratio"], 0.5)


def test_captions_are_text_for_the_report(frame: pd.DataFrame) -> None:
    from docutils.core import publish_doctree

    for name in FIGURES:
        text = reporting.describe(name, frame)
        tree = publish_doctree(claims.restructured(text), settings_overrides={"halt_level": 2, "report_level": 5})
        assert " ".join(tree.astext().split()) == " ".join(text.split())
    assert claims.restructured("a*b_c\nd|") == "a\\*b\\_c\n\nd\\|\n"
