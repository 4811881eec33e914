"""Views of the study: criteria, sizes of models, calibration data, tasks, seeds, drift, published numbers."""

from __future__ import annotations

import csv
import io
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from freelunch import reporting
from freelunch.errors import FreelunchError
from freelunch.reporting import (
    claims,
    comparisons,
    gaps,
    labels,
    published,
    references,
    rendering,
    scales,
    scatter,
    studies,
)
from freelunch.reporting import rows as tidy
from freelunch.reporting.estimates import Estimate
from freelunch.reporting.figures import scale
from freelunch.reporting.protocol import protocol
from suites import MODELS, RETRAINED, Record, Suite, study

NEW = ("calibration", "criterion", "scale", "zero_shot")
TABLES = (*NEW, "seeds")


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return study().frame


def table(name: str, frame: pd.DataFrame) -> list[dict[str, str]]:
    lines = csv.DictReader(io.StringIO(rendering.render(reporting.tabulate(name, frame), "csv")))
    return [line for line in lines if line.get("dataset", "wiki") == "wiki"]


def text(name: str, frame: pd.DataFrame) -> str:
    return rendering.render(reporting.tabulate(name, frame), "md")


def criteria(values: dict[str, tuple[float, float]], **about: Any) -> Suite:
    """Criteria before and after recovery, with one seed."""
    suite = Suite()
    for criterion, (before, after) in values.items():
        suite.add(before, criterion=criterion, **about)
        suite.local(after, criterion=criterion, **about)
    return suite


# --- criteria --------------------------------------------------------------------------------------------------------


def test_criteria_are_compared_before_and_after_at_common_seeds() -> None:
    suite = Suite()
    for seed in (0, 1, 2):
        suite.add(100.0 + seed, criterion="magnitude", seed=seed)
        suite.local(32.0 + seed, criterion="magnitude", seed=seed)
        suite.local(30.0 + seed, seed=seed)
        if seed:  # one seed less
            suite.add(40.0 + seed, seed=seed)
    lines = {line["criterion"]: line for line in table("criterion", suite.frame)}
    found = {name: [float(line[key]) for key in ("none", "perplexity", "dense")] for name, line in lines.items()}
    assert found == {"magnitude": [101.5, 33.5, 14.0], "wanda": [41.5, 31.5, 14.0]}
    assert {line[f"{key}_runs"] for line in lines.values() for key in ("none", "perplexity")} == {"2"}
    assert float(lines["wanda"]["none_stderr"]) == pytest.approx(0.5)


def test_the_best_criterion_before_and_the_best_after_are_bold() -> None:
    suite = criteria({"magnitude": (100.0, 29.0), "wanda": (40.0, 30.0), "ria": (39.996, 31.0)})
    body = [line for line in text("criterion", suite.frame).splitlines() if line.startswith("| m | wiki |")]
    bold = [[cell.strip().split(" ")[0] for cell in line.split("|") if "**" in cell] for line in body]
    assert bold == [["**29.00**"], ["**40.00**"], ["**40.00**"]], "what reads the same is equally good"
    assert "Bold: the best before and the best after recovery" in text("criterion", suite.frame)


def test_the_finding_is_how_far_apart_criteria_are() -> None:
    suite = criteria({"magnitude": (100.0, 33.0), "wanda": (40.0, 30.0)})
    said = reporting.describe("criterion", suite.frame)
    assert "2.50 (Magnitude 100 over Wanda 40.0) before, 1.10 (Magnitude 33.0 over Wanda 30.0) after" in said
    assert said.endswith("recovery (smaller).")
    worse = criteria({"magnitude": (100.0, 90.0), "wanda": (40.0, 30.0)})
    assert "recovery (not smaller)" in reporting.describe("criterion", worse.frame)
    lost = criteria({"magnitude": (math.inf, 33.0), "wanda": (40.0, 30.0)})
    assert "∞ (Magnitude ∞ over Wanda 40.0) before, 1.10" in reporting.describe("criterion", lost.frame)


def test_a_criterion_that_was_measured_on_one_side_alone_counts_in_no_spread() -> None:
    suite = criteria({"magnitude": (100.0, 33.0), "wanda": (40.0, 30.0)})
    suite.local(10.0, criterion="ria")
    (group,) = [g for g in studies.criteria(suite.frame, "x") if g.setting["dataset"] == "wiki"]
    found = gaps.spread(group)
    assert found is not None
    assert [side.best[0] for side in found] == ["wanda", "wanda"]
    assert [side.ratio for side in found] == [2.5, 1.1]


def test_the_criterion_figure_has_a_mark_before_and_after(frame: pd.DataFrame) -> None:
    figure = reporting.draw("criterion", frame)
    panels = [axis for axis in figure.axes if axis.axison]
    assert len(panels) == (3 + 1) * 2 * 2, "models, one of them calibrated on two sets; patterns; measured on two sets"
    (legend,) = figure.legends
    names = [found.get_text() for found in legend.texts]
    assert names == ["Not recovered", "Attention / MLP", "Block", "Dense"]


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_gaps_are_paired_logarithms_over_the_best() -> None:
    runs = pd.DataFrame({"criterion": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1], "value": [2.0, 8.0, 1.0, 2.0]})
    found = gaps.gaps(runs)
    assert (found["b"].value, found["b"].runs) == (0, 2) and math.isnan(found["b"].stderr)
    assert found["a"].value == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert found["a"].stderr == pytest.approx((math.log(4) - math.log(2)) / 2)
    lost = gaps.gaps(runs.assign(value=[math.inf, 8.0, 1.0, 2.0]))
    assert lost["a"].value == math.inf and lost["b"].value == 0


def test_scale_has_the_gaps_of_every_model_by_size() -> None:
    suite = criteria({"magnitude": (100.0, 33.0), "wanda": (40.0, 30.0)})
    for name, values in {"magnitude": (50.0, 20.0), "wanda": (25.0, 16.0)}.items():
        suite.add(values[0], criterion=name, model="large", parameters=10**9)
        suite.local(values[1], criterion=name, model="large", parameters=10**9)
    lines = [[line[key] for key in ("model", "parameters", "criterion")] for line in table("scale", suite.frame)]
    assert lines == [["m", "1000000", "magnitude"], ["m", "1000000", "wanda"],
                     ["large", "1000000000", "magnitude"], ["large", "1000000000", "wanda"]]  # fmt: skip
    found = [(float(line["gap_before"]), float(line["gap_after"])) for line in table("scale", suite.frame)]
    assert "| 1M | m | Magnitude |" in text("scale", suite.frame)
    wanted = [(math.log(2.5), math.log(1.1)), (0, 0), (math.log(2), math.log(1.25)), (0, 0)]
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    said = reporting.describe("scale", suite.frame)
    assert "m (1M) 0.916 (Magnitude) to 0.0953 (Magnitude); large (1G) 0.693 (Magnitude) to 0.223" in said
    assert "not of size alone" not in said
    suite.other_dense("large", 10**9, 99.0)
    assert "(the dense perplexity of a larger model is higher: not of size alone)" in reporting.describe(
        "scale", suite.frame
    )


def test_scale_draws_dashed_before_and_solid_after(frame: pd.DataFrame) -> None:
    axis = reporting.draw("scale", frame).axes[0]
    drawn = [container[0] for container in axis.containers]
    assert [line.get_linestyle() for line in drawn] == ["--", "-"] * 2, "the best has no gap"
    assert all(list(line.get_xdata()) == list(MODELS.values()) for line in drawn)
    assert axis.get_xscale() == "log"


SIZED = {"a1": 10**6, "a2": 10**7, "b1": 2 * 10**6, "b2": 3 * 10**7}
TWO = {"magnitude": (100.0, 33.0), "wanda": (40.0, 30.0)}
FOUR = TWO | {"ria": (41.0, 31.0), "random": (900.0, 90.0)}


def sized(values: dict[str, dict[str, tuple[float, float]]], **about: Any) -> Suite:
    """Criteria before and after recovery, by model."""
    suite = Suite()
    for model, found in values.items():
        family = {"family": model[0]} | about
        suite.records += criteria(found, model=model, parameters=SIZED[model], **family).records[3:]
    suite.records = [record | {"run": f"run{place}"} for place, record in enumerate(suite.records)]
    return suite


def series(frame: pd.DataFrame) -> dict[str, list[str]]:
    """Models by title, and what stands in the panels."""
    found = scales.scales(frame[frame["dataset"] != "german"], "x")
    panels = [axis.get_title() for axis in reporting.draw("scale", frame[frame["dataset"] != "german"]).axes]
    assert len(set(panels)) == len(found) and panels[: len(found)] == scale._titles(found)
    return {title: [point.model for point in one.points] for title, one in zip(panels, found, strict=False)}


def test_models_of_a_family_are_a_series_and_those_of_none_are_one_together() -> None:
    suite = sized(dict.fromkeys(SIZED, TWO))
    assert series(suite.frame) == {"a, 2:4": ["a1", "a2"], "b, 2:4": ["b1", "b2"]}
    lines = [(line["family"], line["model"]) for line in table("scale", suite.frame)]
    assert lines == [(model[0], model) for model in SIZED for _ in TWO]
    said = reporting.describe("scale", suite.frame)
    assert "Series are of models of one family." in said and "once more" not in said
    assert series(sized(dict.fromkeys(SIZED, TWO), family=None).frame) == {"2:4": ["a1", "b1", "a2", "b2"]}
    one = sized(dict.fromkeys(("a1", "b1", "b2"), TWO))
    assert series(one.frame) == {"2:4": ["b1", "b2"]}, "a model alone is no series"
    with pytest.raises(FreelunchError, match=r"models of known size and of one family.* has a1, b1"):
        reporting.tabulate("scale", sized(dict.fromkeys(("a1", "b1"), TWO)).frame)


def test_series_that_differ_in_the_length_of_sequences_alone_are_told_apart() -> None:
    suite = sized(dict.fromkeys(("a1", "a2"), TWO), family=None)
    longer = sized(dict.fromkeys(("b1", "b2"), TWO), family=None, calibration_tokens=32 * 512)
    suite.records += [record | {"run": f"longer-{record['run']}"} for record in longer.records]
    assert series(suite.frame) == {
        "2:4\nCalibration length: 256": ["a1", "a2"], "2:4\nCalibration length: 512": ["b1", "b2"]
    }  # fmt: skip
    assert [line["calibration_length"] for line in table("scale", suite.frame)] == ["256"] * 4 + ["512"] * 4


def test_criteria_that_some_models_have_are_compared_in_these() -> None:
    values = {"a1": FOUR, "a2": FOUR, "b1": TWO, "b2": TWO | {"sparsegpt": (35.0, 29.0)}}
    suite = sized(values, family=None)
    few, more = "Criteria: Magnitude / Wanda", "Criteria: Random / Magnitude / Wanda / RIA"
    assert series(suite.frame) == {f"2:4\n{few}": ["a1", "b1", "a2", "b2"], f"2:4\n{more}": ["a1", "a2"]}
    keys = [(line["criteria"], line["model"], line["criterion"]) for line in table("scale", suite.frame)]
    assert len(set(keys)) == len(keys) == 4 * 2 + 2 * 4
    assert "those with more once more on theirs" in reporting.describe("scale", suite.frame)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "m", "parameters": 10**6}, r"at least two models of known size.*; suite s has m"),
        ({"parameters": None}, r"has large, small, tiny \(of unknown size: large, small, tiny\)"),
    ],
)
def test_one_model_has_no_scale(change: Record, message: str) -> None:
    suite = study((0,))
    kept = [record | change for record in suite.records if record["model"] in ("small", *([] if "model" in change else
            ["tiny", "large"])) or "model" not in record]  # fmt: skip
    for view in (reporting.tabulate, reporting.draw):
        with pytest.raises(FreelunchError, match=message):
            view("scale", tidy.to_frame(kept))


# --- calibration data ------------------------------------------------------------------------------------------------


def test_calibration_data_are_compared_where_all_else_is_equal() -> None:
    suite = criteria({"wanda": (40.0, 30.0)})
    suite.add(44.0, calibration="german")
    suite.local(33.0, calibration="german")
    suite.local(20.0, calibration="german", epochs=7)
    lines = {line["calibration"]: line for line in table("calibration", suite.frame)}
    assert {name: (line["none"], line["perplexity"]) for name, line in lines.items()} == {
        "wiki": ("40.0", "30.0"), "german": ("44.0", "33.0"),
    }  # fmt: skip
    said = reporting.describe("calibration", suite.frame)
    assert "german 33.0, wiki 30.0; not recovered: german 44.0, wiki 40.0; dense 14.0" in said


# --- tasks -----------------------------------------------------------------------------------------------------------


def tasks() -> Suite:
    suite = Suite()
    suite.tasks(suite.dense, boolq=0.8, rte=0.6)
    for seed in (0, 1):
        suite.tasks(suite.add(40.0, seed=seed), boolq=0.6, rte=0.5)
        suite.tasks(suite.local(30.0, seed=seed), boolq=0.7 + 0.02 * seed, rte=0.55)
    suite.tasks(suite.local(30.0, window="block", seed=1), boolq=0.75, rte=0.5)
    return suite


def test_zero_shot_table_has_chance_dense_pruned_and_recovered_in_percent() -> None:
    lines = table("zero_shot", tasks().frame)
    assert [line["variant"] for line in lines] == ["chance", "dense", "none", "attention_mlp", "block"]
    found = [[float(line[task]) for task in ("boolq", "rte", "acc_mean")] for line in lines]
    # the seed that all recoveries have
    np.testing.assert_allclose(found, [[50, 50, 50], [80, 60, 70], [60, 50, 55], [72, 55, 63.5], [75, 50, 62.5]])
    assert [lines[1][key] for key in ("boolq_stderr", "criterion")] == ["1.0", ""]


def test_the_best_recovered_is_bold_in_every_task() -> None:
    shown = text("zero_shot", tasks().frame)
    assert shown.count("**") == 2 * 3
    assert all(f"**{value}**" in shown for value in ("75.00", "55.00", "63.50"))
    assert "boolq (%)" in shown and "Mean (%)" in shown


def test_zero_shot_finding_says_how_much_of_the_loss_was_recovered() -> None:
    suite = tasks()
    said = reporting.describe("zero_shot", suite.frame)
    assert "Dense 70.0, Not recovered 55.0, Attention / MLP 63.5, Block 62.5" in said
    assert "(of the loss recovered: Attention / MLP 57%, Block 50%)" in said
    assert "(chance 50.0)" in said
    figure = reporting.draw("zero_shot", suite.frame)
    assert {"70.0", "63.5", "62.5", "55.0", "50.0"} == {found.get_text() for found in figure.axes[0].texts}


def beside(suite: Suite, task: str, metric: str, values: list[float], **about: Any) -> list[Record]:
    """Another metric of a task, for every run in which it has an accuracy."""
    runs = [record for record in suite.records if (record["metric"], record["dataset"]) == ("acc", task)]
    return [run | {"metric": metric, "value": value} | about for run, value in zip(runs, values, strict=True)]


def test_a_task_with_two_metrics_shows_both_and_the_mean_is_that_of_acc() -> None:
    suite = tasks()
    # dense; not recovered and recovered at seed 0, the same at seed 1; blocks, at seed 1
    normalised = beside(suite, "rte", "acc_norm", [0.9, 0.1, 0.2, 0.3, 0.41, 0.47])
    frame = tidy.to_frame([*suite.records, *normalised])
    lines = table("zero_shot", frame)
    assert [name for name in lines[0] if name.startswith(("boolq", "rte", "acc")) and "_std" not in name
            and "_runs" not in name] == ["boolq", "rte", "rte_acc_norm", "acc_mean"]  # fmt: skip
    found = [[float(line[name]) for name in ("rte", "rte_acc_norm", "acc_mean")] for line in lines]
    np.testing.assert_allclose(found, [[50, 50, 50], [60, 90, 70], [50, 30, 55], [55, 41, 63.5], [50, 47, 62.5]])
    shown = text("zero_shot", frame)
    assert "| boolq (%) | rte (%) | rte, normalised (%) | Mean (%) |" in shown
    assert "per character (acc\\_norm), else as a whole (acc). The mean is that of acc over tasks." in shown
    assert shown.count("**") == 2 * 4 and "**47.00**" in shown
    plain = text("zero_shot", suite.frame)
    assert "ormalised" not in plain and "higher is better. The mean is that of acc over tasks. Bold" in plain
    assert reporting.describe("zero_shot", frame) == reporting.describe("zero_shot", suite.frame)


def test_a_task_that_has_no_acc_is_shown_and_is_no_part_of_the_mean() -> None:
    suite = tasks()
    normalised = beside(suite, "rte", "acc_norm", [0.4] * 6, dataset="arc")
    guessed = beside(suite, "rte", "chance", [0.2] * 6, dataset="arc", stderr=None)
    lines = table("zero_shot", tidy.to_frame([*suite.records, *normalised, *guessed]))
    assert [lines[0][name] for name in ("arc", "boolq", "rte", "acc_mean")] == ["20.0", "50.0", "50.0", "50.0"]
    assert [lines[1][name] for name in ("arc", "acc_mean")] == ["40.0", "70.0"]
    assert "| arc, normalised (%) | boolq (%) |" in text("zero_shot", tidy.to_frame([*suite.records, *normalised]))


def test_answers_that_are_read_in_two_ways_are_two_numbers() -> None:
    suite = tasks()
    strict = beside(suite, "rte", "exact_match", [0.1] * 6, dataset="gsm8k", position="strict-match")
    flexible = beside(suite, "rte", "exact_match", [0.3] * 6, dataset="gsm8k", position="flexible-extract")
    frame = tidy.to_frame([*suite.records, *strict, *flexible])
    chance, dense, *_ = table("zero_shot", frame)
    assert [dense[f"gsm8k_{way}"] for way in ("flexible-extract", "strict-match")] == ["30.0", "10.0"]
    assert (dense["gsm8k_strict-match_runs"], dense["gsm8k_strict-match_stderr"]) == ("1", "1.0")
    assert (chance["gsm8k_strict-match"], chance["acc_mean"]) == ("", "50.0"), "guessing at tasks that have acc"
    shown = text("zero_shot", frame)
    assert "| gsm8k (exact_match, flexible-extract, %) | gsm8k (exact_match, strict-match, %) | rte (%) |" in shown


# --- seeds -----------------------------------------------------------------------------------------------------------


def test_seeds_table() -> None:
    suite = Suite()
    for seed, value in enumerate((30.0, 31.0, 35.0)):
        suite.local(value, seed=seed)
    suite.add(130.0)  # one seed
    (line,) = table("seeds", suite.frame)
    assert (line["perplexity"], line["lowest"], line["highest"], line["seeds"]) == ("32.0", "30.0", "35.0", "3")
    assert float(line["deviation"]) == pytest.approx(math.sqrt(7))
    assert float(line["perplexity_stderr"]) == pytest.approx(math.sqrt(7 / 3))
    assert float(line["relative"]) == pytest.approx(100 * math.sqrt(7) / 32)
    assert "Wanda, 2:4, Attention / MLP 32.0 ± 1.5 (8.27%)" in reporting.describe("seeds", suite.frame)
    with pytest.raises(
        FreelunchError, match="table seeds needs a setting that was run with at least two seeds; suite s"
    ):
        reporting.tabulate("seeds", criteria({"wanda": (40.0, 30.0)}).frame)


# --- drift -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["test", "validation"])
def test_drift_table_is_of_the_last_block_in_and_out_of_the_distribution(other: str) -> None:
    """Of data that are not tested on, such as C4, on validation text; what is tested on is shown by its test split."""
    suite, known = Suite(), {}
    for seed, (name, more) in product((0, 1), (("wiki", 1.0), ("german", 2.0))):
        for window, size in (("attention_mlp", 0.1), ("block", 0.05)):
            run = known.get((seed, window)) or suite.local(30.0, seed=seed, window=window)
            known[seed, window] = run
            for block, factor in enumerate((1.0, 2.0)):
                at = run | {"dataset": name, "length": 256, "position": str(block)}
                if name == "wiki":
                    chosen = {"split": "validation", "metric": "drift_local", "value": 9.0}
                    suite.records.append(at | chosen)
                at |= {"split": "test" if name == "wiki" else other}
                value = more * size * factor + 0.02 * seed
                suite.records.append(at | {"metric": "drift_local", "value": value})
                suite.records.append(at | {"metric": "drift_accumulated", "value": 3 * value})
    built = reporting.tabulate("drift", suite.frame)
    lines = list(csv.DictReader(io.StringIO(rendering.render(built, "csv"))))
    assert [(line["dataset"], line["domain"], line["variant"]) for line in lines] == [
        ("german", "out", "attention_mlp"), ("german", "out", "block"),
        ("wiki", "in", "attention_mlp"), ("wiki", "in", "block"),
    ]  # fmt: skip
    found = [[float(line[key]) for key in ("drift_local", "drift_accumulated", "accumulation")] for line in lines]
    np.testing.assert_allclose(found, [[0.41, 1.23, 3], [0.21, 0.63, 3], [0.21, 0.63, 3], [0.11, 0.33, 3]])
    assert float(lines[3]["drift_local_mean"]) == pytest.approx((0.06 + 0.11) / 2)
    assert float(lines[0]["drift_local_stderr"]) == pytest.approx(0.01)
    assert rendering.render(built, "md").count("**") == 2 * 2


# --- published numbers -----------------------------------------------------------------------------------------------


def test_every_reference_has_a_source_and_parses() -> None:
    from freelunch.prune.patterns import parse_pattern

    found = references.references()
    assert len(found) > 100
    assert found["source"].str.contains(r"arXiv:\d{4}\.\d{5}|github\.com/\S+/\S+").all()
    assert not found.duplicated(["source", "model", "criterion", "pattern", "dataset", "length", "metric"]).any()
    for pattern in set(found["pattern"]) - {"dense"}:
        parse_pattern(pattern)
    assert set(found["criterion"]) - {"dense"} <= set(labels._VALUES["criterion"])
    assert found[found["metric"] == "ppl"]["length"].isin([2048, 4096]).all()
    assert found[found["metric"] == "acc"]["value"].between(0, 1).all()


def as_published(suite: Suite) -> pd.DataFrame:
    """The rows as if measured on WikiText-2 with Llama 2."""
    measured = {"model": "Llama-2-7B", "length": 4096, "metric": "ppl@4096"}
    changed = [record | {"model": "Llama-2-7B"} for record in suite.records]
    for record in changed:
        if record["metric"] == "ppl@256":
            record |= measured | {"dataset": "WikiText2" if record["dataset"] == "wiki" else "german"}
    return tidy.to_frame(changed)


def test_published_numbers_stand_beside_ours() -> None:
    suite = criteria({"wanda": (12.0, 10.0)})
    suite.add(11.0, criterion="ria")
    suite.add(11.5, refinement="exact")
    suite.tasks(suite.records[3], boolq=0.68)
    frame = as_published(suite)
    lines = list(csv.DictReader(io.StringIO(rendering.render(reporting.tabulate("published", frame), "csv"))))
    ppl = [line for line in lines if line["measure"] == "ppl"]
    found = {(line["criterion"], line["source"].split("/")[-1]): [float(line[key]) for key in ("published", "ours",
             "difference")] for line in ppl}  # fmt: skip
    assert found["wanda", "exp_results.png)"] == pytest.approx([11.29, 12.0, 0.71])
    assert {name for name, _ in found} == {"dense", "wanda"}
    assert {line["variant"] for line in lines} == {"dense", "none"}
    assert {float(line["published"]) for line in lines if line["measure"] == "acc"} == {0.677, 0.68}
    said = reporting.describe("published", frame)
    assert "Without a published number: Llama-2-7B, Wanda, 2:4, Attention / MLP; Llama-2-7B, RIA, 2:4" in said
    assert "exact" not in said


def test_a_suite_without_published_numbers_is_told_what_there_is(frame: pd.DataFrame) -> None:
    with pytest.raises(FreelunchError, match=r"table published finds no published number for suite s; published: "
                       r"llama-13b \(wikitext2 at 2048\).*; measured: large \("):  # fmt: skip
        reporting.tabulate("published", frame)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "its columns are not source, model"),
        (",".join(references.COLUMNS) + "\n,m,wanda,2:4,none,w,2048,ppl,3\n", "a row lacks its source"),
        (",".join(references.COLUMNS) + "\ns,m,wanda,2:4,none,w,2048,ppl,low\n", "could not convert"),
        (None, "there are no published numbers"),
    ],
)
def test_references_that_cannot_be_read_are_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "x.csv").write_text(content)
    with pytest.raises(FreelunchError, match=message):
        references.references(tmp_path)


def test_a_recovered_model_stands_beside_published_recovered_ones() -> None:
    suite = criteria({"wanda": (12.0, 10.0)})
    line = {"source": "arXiv:1", "model": "m", "criterion": "wanda", "pattern": "2:4", "recovery": "lora",
            "dataset": "wiki", "length": 256, "metric": "ppl", "value": 9.0}  # fmt: skip
    theirs = pd.DataFrame([line]).astype({"length": "Int64"})
    joined, without = published.pairs(suite.frame, theirs, "x")
    assert list(joined["value"]) == [10.0] and list(joined["published_recovery"]) == ["lora"]
    assert set(without["criterion"]) == {"dense", "wanda"}


# --- compute and memory ----------------------------------------------------------------------------------------------


def test_retraining_is_drawn_over_tokens_and_over_compute() -> None:
    suite = Suite()
    suite.local(30.0, search_tokens=16384)  # as many tokens as it was trained on
    for tokens, value in ((16384, 50.0), (65536, 29.0)):
        suite.add(value, **(RETRAINED | {"epochs": tokens // 8192, "training_tokens": tokens}))
    lines = {line["training_tokens"]: line for line in table("retraining", suite.frame) if line["loss"] != "mse"}
    assert {float(line["operations"]) for line in lines.values()} == {6e6 * 16384, 6e6 * 65536}
    (local,) = [line for line in table("retraining", suite.frame) if line["recovery"] == "reconstruct"]
    assert float(local["operations"]) == 6e6 * 2 * 16384
    axes = [axis for axis in reporting.draw("retraining", suite.frame).axes if axis.axison]
    assert [axis.get_xlabel() for axis in axes[:2]] == ["Training tokens", "Training compute (FLOP)"]
    said = reporting.describe("retraining", suite.frame)
    assert "[reaches reconstruction on 16.4k with 4 times the tokens and 2 times the compute]" in said
    unknown = tidy.to_frame([record | {"parameters": None} for record in suite.records])
    axes = [axis for axis in reporting.draw("retraining", unknown).axes if axis.axison]
    assert {axis.get_xlabel() for axis in axes} == {"Training tokens"}
    assert "with 4 times the tokens]" in reporting.describe("retraining", unknown)


def test_pareto_front() -> None:
    points = [("a", 1.0, 9.0), ("b", 2.0, 5.0), ("c", 3.0, 5.0), ("d", 4.0, 4.0), ("e", 0.5, math.inf)]
    assert scatter.pareto([(name, x, Estimate(y)) for name, x, y in points]) == ["a", "b", "d"]
    suite = Suite()
    for window, value, memory in (("matrix", 40.0, 1.0), ("attention_mlp", 30.0, 2.0), ("block", 31.0, 3.0)):
        suite.local(value, window=window, peak_gib=memory)
    assert "none is better in both than Matrix, Attention / MLP;" in reporting.describe("memory", suite.frame)


# --- captions --------------------------------------------------------------------------------------------------------


def test_the_protocol_names_models_data_lengths_and_seeds(frame: pd.DataFrame) -> None:
    assert protocol(frame) == (
        "Protocol: m (1M parameters), tiny (1M parameters), small (15M parameters), large (250M parameters); "
        "calibrated on german, wiki, 32 sequences of 256 tokens; trained for 2 epochs, learning rate 0.001; "
        "perplexity on test text of german, wiki in windows of 256 tokens; 2 zero-shot tasks; seeds 0, 1."
    )
    many = tidy.to_frame([record | {"run": f"{record['run']}-{seed}", "seed": seed} for record in study((0,)).records
                          for seed in range(6) if record["criterion"] != "dense"])  # fmt: skip
    assert "seeds 0 to 5 (6 values)" in protocol(many)
    trained = frame.assign(trained_on=frame["model"].map({"tiny": "wiki"}).astype(tidy.DTYPES["trained_on"]))
    assert "tiny (1M parameters, trained here from random weights on wiki), small (15M param" in protocol(trained)


def test_the_protocol_of_a_view_is_that_of_the_runs_it_shows() -> None:
    suite = Suite()
    for window in ("matrix", "block"):
        suite.local(30.0, window=window)
    suite.local(50.0, window="block", calibration="german", sequences=8, seed=7)
    assert "calibrated on german, wiki, 8, 32 sequences" in protocol(suite.frame)
    said = reporting.about("window", suite.frame)
    assert "calibrated on wiki, 32 sequences" in said and said.endswith("; seed 0.")


@pytest.mark.parametrize("name", NEW)
def test_tables_and_figures_say_the_same(frame: pd.DataFrame, name: str) -> None:
    said = reporting.describe(name, frame)
    assert claims.CLAIMS[name] in said
    built = reporting.tabulate(name, frame)
    first, protocol_ = reporting.about(name, frame).rsplit("\n", 1)
    assert first == said and built.about == f"{said}\n{protocol_}" and protocol_.startswith("Protocol: ")
    (caption,) = (line for line in rendering.render(built, "tex").split("\n") if line.startswith(r"\caption{"))
    assert rendering.latex(protocol_) in caption
    assert rendering.latex(said.split("\n")[1]) in caption
    for line in built.about.splitlines():
        assert rendering.markdown(line) in rendering.render(built, "md")


@pytest.mark.parametrize("name", TABLES)
def test_tables_have_one_line_per_setting(frame: pd.DataFrame, name: str) -> None:
    built = reporting.tabulate(name, frame)
    assert len(built.lines) > 3
    assert len({str(key) for key, _ in built.lines}) == len(built.lines)
    for kind in rendering.KINDS:
        assert "nan" not in rendering.render(built, kind).lower()


@pytest.mark.parametrize("name", NEW)
def test_figures_draw_and_hold_their_claim(frame: pd.DataFrame, name: str) -> None:
    figure = reporting.draw(name, frame)
    figure.canvas.draw()
    (small,) = [found for found in figure.texts if found.get_text().startswith("Claim")]
    assert small.get_text().split() == reporting.describe(name, frame).split()


@pytest.mark.parametrize("name", [*NEW, "published", "drift", "seeds"])
def test_what_is_missing_is_named(name: str) -> None:
    suite = Suite()
    suite.local(30.0)
    with pytest.raises(FreelunchError, match=rf"table {name} (needs|finds) .*suite s"):
        reporting.tabulate(name, suite.frame)
    if name in NEW:
        with pytest.raises(FreelunchError, match=rf"figure {name} needs .*suite s"):
            reporting.draw(name, suite.frame)


def test_the_best_of_what_is_compared_is_bold_in_comparisons() -> None:
    suite = criteria({"wanda": (40.0, 30.0)})
    suite.local(29.0, flow="sparse_dense")
    assert "**29.00**" in text("flow", suite.frame) and "**30.00**" not in text("flow", suite.frame)


def test_groups_along_an_axis_of_pruning_have_paired_baselines() -> None:
    suite = Suite()
    for criterion, seed in product(("wanda", "ria"), (0, 1)):
        suite.local(30.0 + seed, criterion=criterion, seed=seed)
    suite.add(40.0, criterion="wanda", seed=0)
    suite.add(41.0, criterion="ria", seed=1)
    groups = comparisons.along(comparisons.measured(suite.frame, "x"), "criterion")
    (group,) = [found for found in groups if found.setting["dataset"] == "wiki"]
    assert set(group.runs["seed"]) | set(group.alone["seed"]) == {0}
    assert group.baseline("ria") is None
