"""Which runs are compared, at which seeds, and what selects: against numbers worked out by hand."""

from __future__ import annotations

import math
from itertools import product

import pandas as pd
import pytest
from made import EXACT, RETRAINED, Suite, criteria, sweep_suite

from freelunch.errors import FreelunchError
from freelunch.report.compare import Estimate, Group, along, best, comparison, estimate, measured
from freelunch.report.studies import by_size, gaps, races, sweeps
from freelunch.report.text import number, order, printed, value


def on(dataset: str, groups: list[Group]) -> list[Group]:
    return [group for group in groups if group.setting["dataset"] == dataset]


def test_means_over_seeds_hide_nothing() -> None:
    assert estimate([3.0], [0.2]) == Estimate(3.0, 0.2, 1)
    assert estimate([1.0, 3.0]) == Estimate(2.0, 1.0, 2)
    assert estimate([1.0, math.inf]).value == math.inf and math.isnan(estimate([1.0, math.nan]).value)
    assert estimate([225.0007] * 3).stderr == 0.0, "and not what is left of rounding"


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
    (group,) = on("wiki", along(measured(suite.frame, "x"), "flow"))
    assert group.values == ["dense", "sparse_dense"]
    assert group.estimate("dense") == Estimate(30.0, 0.3, 1), "of the seed that both have"
    assert group.estimate("sparse_dense") == Estimate(29.0, 0.3, 1)
    assert group.baseline() == Estimate(130.0, 0.3, 1) and list(group.dense["value"]) == [14.0]
    (german,) = on("german", along(measured(suite.frame, "x"), "flow"))
    assert (german.estimate("sparse_dense"), german.baseline()) == (Estimate(87.0, 0.3), Estimate(390.0, 0.3))


def test_baselines_are_pruned_alike() -> None:
    suite = Suite()
    suite.add(130.0)
    suite.add(90.0, criterion="ria")
    suite.add(80.0, sequences=64, calibration_tokens=64 * 256)
    suite.local(30.0)
    suite.local(31.0, loss="cosine")
    (group,) = on("wiki", comparison(suite.frame, "loss", "x"))
    assert list(group.alone["value"]) == [130.0]


def test_the_replica_is_a_flow_and_a_window_and_what_is_exact_stands_with_all() -> None:
    suite = Suite()
    suite.local(43.0, window="matrix")
    suite.local(47.0, window="matrix", flow="official_matrix")
    suite.local(30.0)
    suite.local(31.5, parametrization="full")
    suite.local(29.0, learning_rate="0.01")
    suite.add(44.0, **EXACT)
    (group,) = on("wiki", comparison(suite.frame, "window", "x"))
    assert group.values == ["matrix_exact", "matrix", "official_matrix", "attention_mlp"]
    assert sorted(group.at("attention_mlp")["extras"]) == ["biases + norms", "frozen"]
    pair = suite.frame[suite.frame["window"] != "matrix"]
    fast, slow = on("wiki", comparison(pair, "window", "x"))
    assert (fast.setting["learning_rate"], slow.setting["learning_rate"]) == ("0.001", "0.01")
    assert fast.values == slow.values == ["matrix_exact", "attention_mlp"]
    (flow,) = on("wiki", comparison(suite.frame, "flow", "x"))
    assert flow.values == ["dense", "official_matrix"] and flow.setting["window"] == "matrix"


def test_key_and_up_together_stand_beside_the_same_matrices_each_for_itself() -> None:
    suite = Suite()
    suite.local(43.0, window="matrix")
    suite.local(41.0, window="matrix", targets="k_proj + up_proj")
    suite.local(48.0, window="matrix", targets="k_proj + up_proj", flow="official_matrix")  # of another group
    suite.local(36.0, window="key_up")
    suite.local(30.0)
    suite.local(29.0, targets="k_proj + up_proj")  # so is this
    group, other = on("wiki", comparison(suite.frame, "window", "x"))
    assert other.values == ["official_matrix", "attention_mlp"]
    assert group.values == ["matrix", "matrix (k_proj + up_proj)", "key_up", "attention_mlp"]
    assert group.estimate("matrix (k_proj + up_proj)") == Estimate(41.0, 0.3, 1)


def test_sizes_are_those_of_training_alone_or_of_pruning_too() -> None:
    suite = Suite()
    for sequences, perplexity in ((32, 130.0), (64, 128.0)):
        suite.add(perplexity, sequences=sequences, calibration_tokens=sequences * 256)
    suite.local(30.0)
    suite.local(28.0, training_sequences=64)
    suite.local(27.0, training_sequences=64, sequences=64, calibration_tokens=64 * 256)
    suite.local(20.0, training_sequences=64, sequences=64, calibration_tokens=64 * 512)  # longer: in no group
    together, alone = on("wiki", comparison(suite.frame, "sequences", "x"))
    assert [together.estimate(each) for each in together.values] == [Estimate(30.0, 0.3), Estimate(27.0, 0.3)]
    assert [together.estimate(each, "tokens") for each in together.values] == [Estimate(8192.0), Estimate(16384.0)]
    assert [together.baseline(each) for each in together.values] == [Estimate(130.0, 0.3), Estimate(128.0, 0.3)]
    assert [alone.estimate(each) for each in alone.values] == [Estimate(30.0, 0.3), Estimate(28.0, 0.3)]
    assert alone.baseline(64) == Estimate(130.0, 0.3)


# --- seeds -----------------------------------------------------------------------------------------------------------


def test_values_are_compared_at_the_seeds_that_all_have() -> None:
    suite = Suite()
    for seed in (0, 1, 2):
        suite.add(130.0 + 10 * seed, seed=seed)
        suite.local(30.0 + seed, seed=seed)
    for seed in (1, 2):
        suite.local(29.0 + seed, seed=seed, flow="sparse_dense")
    suite.local(20.0, seed=7, flow="sparse_local")  # of no common seed
    (group,) = on("wiki", comparison(suite.frame, "flow", "x"))
    assert group.values == ["dense", "sparse_dense"]
    assert group.estimate("dense") == Estimate(31.5, 0.5, 2)
    assert group.estimate("sparse_dense") == Estimate(30.5, 0.5, 2)
    assert group.baseline() == Estimate(145.0, 5.0, 2) and len(group.dense) == 1
    apart = Suite()
    apart.local(30.0, seed=0)
    apart.local(29.0, seed=1, flow="sparse_dense")
    with pytest.raises(FreelunchError, match="needs recovered runs that differ in flow alone; suite s has none"):
        comparison(apart.frame, "flow", "x")


def test_lines_of_one_group_are_of_the_same_seeds_too() -> None:
    suite = Suite()
    for seed, window in product((0, 1), ("matrix", "block")):
        suite.local(30.0 + seed, window=window, seed=seed)
    for window in ("matrix", "block"):
        suite.local(40.0, window=window, seed=1, parametrization="full")
    (group,) = on("wiki", comparison(suite.frame, "window", "x"))
    assert set(group.runs["seed"]) == {1} and len(group.runs) == 4


def test_of_equal_cells_validation_chooses_at_common_seeds() -> None:
    suite = Suite()
    suite.local(30.0, validation=40.0)
    suite.local(35.0, validation=33.0, learning_rate="0.01")
    suite.local(20.0, validation=math.nan, learning_rate="0.1")
    suite.local(36.0, validation=math.inf, learning_rate="0.2")
    found = best(measured(suite.frame, "x"), ["dataset", "criterion"], suite.frame, "x")
    assert list(found[(found["criterion"] == "wanda") & (found["dataset"] == "german")]["value"]) == [105.0]
    without = suite.frame[suite.frame["split"] == "test"]
    with pytest.raises(FreelunchError, match="figure x needs the validation perplexity"):
        best(without, ["dataset", "criterion"], without, "figure x")
    suite = Suite()
    for seed, perplexity in ((0, 30.0), (1, 10.0)):
        suite.local(perplexity, validation=perplexity, seed=seed)
    suite.local(28.0, validation=28.0, learning_rate="0.01")  # better than the other at seed 0
    suite.local(5.0, validation=5.0, learning_rate="0.1", seed=9)  # of no common seed
    found = best(measured(suite.frame, "x"), ["dataset", "criterion"], suite.frame, "x")
    assert set(found[found["criterion"] == "wanda"]["learning_rate"]) == {"0.01"}


# --- studies ---------------------------------------------------------------------------------------------------------


def test_retraining_and_reconstruction_are_of_the_same_seeds() -> None:
    suite = Suite()
    for seed in (0, 1):
        suite.add(130.0 + 10 * seed, seed=seed)
        suite.local(30.0 + seed, seed=seed)
        suite.add(90.0 + seed, recovery="repair", repair="layer", seed=seed)
    suite.add(40.0, **(RETRAINED | {"seed": 1}))
    (group,) = on("wiki", races(suite.frame, "x"))
    assert sorted(group.runs["value"]) == [31.0, 40.0, 91.0] and group.baseline() == Estimate(140.0, 0.3, 1)
    suite = Suite()
    suite.local(30.0)
    suite.add(40.0, **(RETRAINED | {"seed": 1}))
    with pytest.raises(FreelunchError, match="needs reconstructed and retrained runs"):
        races(suite.frame, "x")


def test_seeds_that_stop_early_at_different_steps_are_one_point_and_searching_costs_compute() -> None:
    suite = Suite()
    for seed, tokens in ((0, 16384), (1, 8192)):
        suite.local(30.0 + seed, seed=seed, training_tokens=tokens, search_tokens=4096, patience=3)
        suite.add(40.0, **(RETRAINED | {"seed": seed}))
    (group,) = on("wiki", races(suite.frame, "x"))
    local = group.runs[group.runs["recovery"] == "reconstruct"]
    assert set(local["training_tokens"]) == {12288}, "the mean"
    assert group.estimate(12288) == Estimate(30.5, 0.5, 2)
    assert set(local["operations"]) == {6e6 * (12288 + 4096)}


def test_validation_and_test_select_learning_rates_at_the_cost_of_the_sweep() -> None:
    suite = sweep_suite()
    for seed in (2, 3):  # seeds that the other settings lack
        suite.local(10.0, 10.0, learning_rate="0.0001", epochs=1, seed=seed)
    (sweep,) = [each for each in sweeps(suite.frame, "x") if each.group.setting["dataset"] == "wiki"]
    validation, test, auto = sweep.choices()
    assert (validation.rate.learning_rate, validation.rate.epochs) == ("0.0001", 2)
    assert validation.rate.test == Estimate(31.5, 0.5, 2)
    assert (test.rate.learning_rate, test.rate.epochs, test.rate.test.value) == ("0.01", 1, 29.5)
    assert (validation.runs, validation.seconds, test.runs, test.seconds) == (8, 800.0, 8, 800.0)
    assert (auto.by, auto.rate.epochs, auto.rate.test.value) == ("auto", 2, 30.5)
    assert (auto.runs, auto.seconds) == (4, 1000.0), "all lengths that were tried"
    with pytest.raises(FreelunchError, match="needs the validation perplexity"):
        sweeps(suite.frame[suite.frame["split"] == "test"], "x")


def test_gaps_are_paired_logarithms_over_the_best() -> None:
    runs = pd.DataFrame({"criterion": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1], "value": [2.0, 8.0, 1.0, 2.0]})
    found = gaps(runs)
    assert (found["b"].value, found["b"].runs) == (0, 2) and math.isnan(found["b"].stderr)
    assert found["a"].value == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert found["a"].stderr == pytest.approx((math.log(4) - math.log(2)) / 2)
    lost = gaps(runs.assign(value=[math.inf, 8.0, 1.0, 2.0]))
    assert lost["a"].value == math.inf and lost["b"].value == 0


TWO = {"magnitude": (100.0, 33.0), "wanda": (40.0, 30.0)}
SIZED = {"a1": 10**6, "a2": 10**7, "b1": 2 * 10**6, "b2": 3 * 10**7}


def sized(values: dict[str, dict[str, tuple[float, float]]], **about: str | None) -> pd.DataFrame:
    """Criteria before and after recovery, by model; the family of a model is its first letter."""
    suite = Suite()
    for model, each in values.items():
        suite.extend(criteria(each, **({"model": model, "parameters": SIZED[model], "family": model[0]} | about)))
    return suite.frame


def series(frame: pd.DataFrame) -> list[tuple[str, list[str]]]:
    return [(one.setting["criteria"], [str(group.setting["model"]) for group in one.groups])
            for one in by_size(frame, "x") if one.setting["dataset"] == "wiki"]  # fmt: skip


def test_models_are_compared_by_size_within_a_family_on_the_criteria_that_all_have() -> None:
    both = "Magnitude / Wanda"
    assert series(sized(dict.fromkeys(SIZED, TWO))) == [(both, ["a1", "a2"]), (both, ["b1", "b2"])]
    assert series(sized(dict.fromkeys(SIZED, TWO), family=None)) == [(both, ["a1", "b1", "a2", "b2"])]
    assert series(sized(dict.fromkeys(("a1", "b1", "b2"), TWO))) == [(both, ["b1", "b2"])], "one alone is no series"
    four = TWO | {"ria": (41.0, 31.0), "random": (900.0, 90.0)}
    more = sized({"a1": four, "a2": four, "b1": TWO, "b2": TWO | {"sparsegpt": (35.0, 29.0)}}, family=None)
    assert series(more) == [(both, ["a1", "b1", "a2", "b2"]), ("Random / Magnitude / Wanda / RIA", ["a1", "a2"])]
    with pytest.raises(FreelunchError, match=r"models of known size and of one family.* has a1, b1"):
        series(sized(dict.fromkeys(("a1", "b1"), TWO)))
    unknown = sized(dict.fromkeys(("a1", "a2"), TWO))
    unknown = unknown.assign(parameters=unknown["parameters"].where(unknown["criterion"] == "dense"))
    with pytest.raises(FreelunchError, match=r"has a1, a2 \(of unknown size: a1, a2\)"):
        series(unknown)


# --- names and numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "given", "called"),
    [
        ("criterion", "ria(alpha=1)", "RIA (alpha=1)"), ("refinement", "dsnot + admm", "DSnoT + ADMM update"),
        ("parametrization", "lora_prune(rank=8) + norms", "LoRA-Prune (rank=8) + norms"),
        ("parametrization", "full + biases", "Weights + biases"), ("window", "3", "3 blocks"),
        ("window", "matrix (k_proj + up_proj)", "Matrix, k_proj + up_proj only"), ("model", "a_b", "a_b"),
        ("allocation", "given(0.1, 0.5, 0.2, 0.3)", "Given (0.1 to 0.5)"), ("warmup", 0.1, "0.1"),
    ],
)  # fmt: skip
def test_values_have_short_names(axis: str, given: str | float, called: str) -> None:
    assert value(axis, given) == called


@pytest.mark.parametrize(
    ("axis", "wanted"),
    [
        ("window", ["matrix_exact", "matrix", "key_up", "attention_mlp", "block", "2", "12", "model", "retrain"]),
        ("pattern", ["50%", "60%", "2:4", "20% structured"]), ("model", ["llama-3m", "llama-15m"]),
        ("learning_rate", ["3e-05", "0.001", "auto"]), ("criterion", ["random", "magnitude", "ria(alpha=1)", "flap"]),
    ],
)  # fmt: skip
def test_values_come_in_the_order_a_reader_expects(axis: str, wanted: list[str]) -> None:
    assert sorted(set(wanted), key=lambda each: order(axis, each)) == wanted


@pytest.mark.parametrize(
    ("given", "in_a_table", "in_a_figure"),
    [
        (14.064, "14.06", "14.1"), (99.996, "100.0", "100"), (288.44, "288.4", "288"), (1234.4, "1,234", "1,234"),
        (1.2e6, "1.200×10⁶", "1.2×10⁶"), (1e6, "1.000×10⁶", "10⁶"), (0.5, "0.5000", "0.500"), (math.inf, "∞", "∞"),
        (math.nan, "NaN", "NaN"),
    ],
)  # fmt: skip
def test_numbers(given: float, in_a_table: str, in_a_figure: str) -> None:
    assert (number(given), printed(given)) == (in_a_table, in_a_figure)
