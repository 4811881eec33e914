"""Tables: their cells against numbers worked out by hand, what is bold, and how they are written."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made import ALL, EXACT, LORA, RETRAINED, Record, Suite, criteria, everything, sweep_suite

import freelunch.vision  # noqa: F401  declares its tables
from freelunch.errors import FreelunchError
from freelunch.pruning.patterns import parse_pattern
from freelunch.report import render, rows, studies, tables, text, views


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return everything().frame


def lines(name: str, frame: pd.DataFrame) -> list[dict[str, str]]:
    """The CSV of a table, but for the lines of German text."""
    found = csv.DictReader(io.StringIO(render.csv(views.table(name, frame))))
    return [line for line in found if line.get("dataset", "wiki") == "wiki"]


def shown(name: str, frame: pd.DataFrame) -> str:
    return render.markdown(views.table(name, frame)).replace("  ", "")


def bold(name: str, frame: pd.DataFrame) -> list[str]:
    found = render.shown(views.table(name, frame))
    return [cell for cell, best in zip(found.frame.values.flat, found.bold.values.flat, strict=True) if best]


# --- comparisons -----------------------------------------------------------------------------------------------------


def test_window_table_has_means_and_errors(frame: pd.DataFrame) -> None:
    found = {(line["pattern"], line["window"], line["parametrization"]): line for line in lines("window", frame)}
    block = found["2:4", "block", ALL]
    assert float(block["perplexity"]) == pytest.approx(30.1)
    assert (float(block["perplexity_stderr"]), block["perplexity_runs"]) == (pytest.approx(0.2), "2")
    assert (float(block["dense"]), float(block["none"])) == (14.0, pytest.approx(130.2))
    assert float(found["2:4", "official_matrix", ALL]["perplexity"]) == pytest.approx(47.2)
    assert float(found["2:4", "matrix_exact", ALL]["perplexity"]) == pytest.approx(44.2)
    assert float(found["2:4", "matrix (k_proj + up_proj)", ALL]["perplexity"]) == pytest.approx(41.2)


def test_criteria_are_compared_before_and_after_at_common_seeds() -> None:
    suite = Suite()
    for seed in (0, 1, 2):
        suite.add(100.0 + seed, criterion="magnitude", seed=seed)
        suite.local(32.0 + seed, criterion="magnitude", seed=seed)
        suite.local(30.0 + seed, seed=seed)
        if seed:  # one seed less
            suite.add(40.0 + seed, seed=seed)
    found = {line["criterion"]: line for line in lines("criterion", suite.frame)}
    numbers = {name: [float(line[key]) for key in ("none", "perplexity", "dense")] for name, line in found.items()}
    assert numbers == {"magnitude": [101.5, 33.5, 14.0], "wanda": [41.5, 31.5, 14.0]}
    assert float(found["wanda"]["none_stderr"]) == pytest.approx(0.5) and found["wanda"]["none_runs"] == "2"


def test_the_best_before_and_the_best_after_are_bold_and_ties_both() -> None:
    suite = criteria({"magnitude": (100.0, 29.0), "wanda": (40.0, 30.0), "ria": (39.996, 31.0)})
    suite.records = [record for record in suite.records if record["dataset"] == "wiki"]
    assert bold("criterion", suite.frame) == ["29.00 ± 0.30", "40.00 ± 0.30", "40.00 ± 0.30"], "what reads the same"
    lost = criteria({"magnitude": (math.inf, math.nan), "wanda": (40.0, 30.0), "ria": (41.0, 31.0)}).frame
    assert "∞" in shown("criterion", lost) and "NaN" in shown("criterion", lost)
    numbers = {line["criterion"]: (line["none"], line["perplexity"]) for line in lines("criterion", lost)}
    assert numbers["magnitude"] == ("inf", "nan"), "and a missing number is empty"
    assert {cell.split(" ")[0] for cell in bold("criterion", lost)} >= {"40.00", "30.00"}


def test_calibration_data_are_compared_where_all_else_is_equal() -> None:
    suite = criteria({"wanda": (40.0, 30.0)})
    suite.add(44.0, calibration="german")
    suite.local(33.0, calibration="german")
    suite.local(20.0, calibration="german", epochs=7)
    found = {line["calibration"]: (line["none"], line["perplexity"]) for line in lines("calibration", suite.frame)}
    assert found == {"wiki": ("40.0", "30.0"), "german": ("44.0", "33.0")}


def test_mismatch_is_the_ratio_of_sums_and_one_where_merging_is_exact() -> None:
    suite = Suite()
    suite.local(30.0)
    run = suite.local(33.0, parametrization="lora_prune")
    for position, merged, unmerged in (("0.mlp", 3.0, 2.0), ("1.mlp", 2.0, 2.0), ("2.mlp", 9.0, None)):
        at = run | {"split": "validation", "position": position}
        # the state that is saved is an earlier one, of a merge that cost nothing
        suite.records.append(at | {"metric": "best_validation_loss", "step": 0, "value": 1.0})
        suite.records += [at | {"metric": "validation_loss", "step": s, "value": v} for s, v in ((0, 1.0), (3, merged))]
        if unmerged:
            suite.records.append(at | {"metric": "unmerged_validation_loss", "step": 3, "value": unmerged})
    found = {line["parametrization"]: line for line in lines("parametrization", suite.frame)}
    assert {name: float(line["mismatch"]) for name, line in found.items()} == {ALL: 1.0, "lora_prune": 5 / 4}
    assert found[ALL]["trainable_parameters"] == "1000"


def test_retraining_table_has_what_trains_on_nothing(frame: pd.DataFrame) -> None:
    found = [line for line in lines("retraining", frame) if line["pattern"] == "2:4"]
    tokens = {(line["recovery"], line["repair"]): line["training_tokens"] for line in found if line["repair"]}
    assert tokens == {("repair", name): "0" for name in ("channel", "layer", "shrink")}
    assert [line["training_tokens"] for line in found if line["recovery"] == "none"] == ["0"]
    kl = [line for line in found if line["loss"] == "kl" and line["parametrization"] == ALL]
    assert [line["training_tokens"] for line in kl] == ["16384", "65536", "262144"]
    assert float(kl[0]["perplexity"]) == pytest.approx(60 / 2**0.3 + 1.2)
    assert float(kl[0]["operations"]) == 6e6 * 16384


def test_learning_rate_table() -> None:
    names = ("selection", "learning_rate", "epochs", "perplexity", "seconds", "trials")
    found = [tuple(line[name] for name in names) for line in lines("learning_rate", sweep_suite().frame)]
    assert found == [
        ("validation", "0.0001", "2", "31.5", "800.0", "8"),
        ("test", "0.01", "1", "29.5", "800.0", "8"),
        ("auto", "auto", "2", "30.5", "1000.0", "4"),
    ]


def test_scale_has_the_gaps_of_every_model_by_size() -> None:
    suite = criteria({"magnitude": (100.0, 33.0), "wanda": (40.0, 30.0)})
    suite.extend(criteria({"magnitude": (50.0, 20.0), "wanda": (25.0, 16.0)}, model="large", parameters=10**9))
    found = lines("scale", suite.frame)
    assert [(line["model"], line["criterion"]) for line in found] == [
        ("m", "magnitude"), ("m", "wanda"), ("large", "magnitude"), ("large", "wanda")
    ]  # fmt: skip
    gaps = [(float(line["gap_before"]), float(line["gap_after"])) for line in found]
    wanted = [(math.log(2.5), math.log(1.1)), (0, 0), (math.log(2), math.log(1.25)), (0, 0)]
    np.testing.assert_allclose(gaps, wanted, atol=1e-12)
    assert "not of size alone" not in shown("scale", suite.frame)
    suite.other_dense("large", 10**9, 99.0)
    assert "not of size alone" in shown("scale", suite.frame)


# --- all settings ----------------------------------------------------------------------------------------------------


def test_levels_are_added_only_where_they_vary_and_what_was_not_run_is_missing() -> None:
    suite = criteria({"magnitude": (288.4, 78.9), "wanda": (33.8, 27.2)})
    suite.records = [record for record in suite.records if record["dataset"] == "wiki"]
    assert views.table("perplexity", suite.frame).levels == ("model", "criterion", "pattern")
    suite.local(26.61, window="block")
    suite.local(25.61, window="block", learning_rate="0.0001")
    table = views.table("perplexity", suite.frame)
    assert table.levels == ("model", "dataset", "criterion", "pattern", "learning_rate")
    slow = next(line for line in lines("perplexity", suite.frame) if line["learning_rate"] == "0.0001")
    assert (slow["block"], slow["none"], slow["dense"]) == ("25.61", "33.8", "14.0"), "beside each learning rate"
    assert (slow["attention_mlp"], slow["attention_mlp_runs"]) == ("", "0")


def test_seeds_become_mean_and_standard_error_and_other_calibration_sets_are_no_seeds() -> None:
    suite = Suite()
    for seed in (0, 1):
        suite.add(130.2 + seed, seed=seed)
    suite.add(140.0, validation_sequences=16)
    found = {line["validation_sequences"]: line for line in lines("perplexity", suite.frame)}
    assert (float(found["8"]["none"]), found["8"]["none_stderr"]) == (pytest.approx(130.7), "0.5")
    assert (found["16"]["none"], found["16"]["none_runs"]) == ("140.0", "1")
    assert "14.00 ± 0.30†" in shown("perplexity", suite.frame) and "†: one run" in shown("perplexity", suite.frame)


def test_data_without_a_test_split_are_shown_by_their_validation_split() -> None:
    """As the literature does with C4; what has a test split is never shown by another."""
    suite = criteria({"wanda": (33.8, 27.2)})
    c4 = [record | {"dataset": "c4", "value": 2 * record["value"]} for record in suite.records
          if record["split"] == "validation"]  # fmt: skip
    every = csv.DictReader(io.StringIO(render.csv(views.table("perplexity", rows.to_frame([*suite.records, *c4])))))
    assert {line["dataset"]: float(line["none"]) for line in every} == {
        "wiki": 33.8, "german": pytest.approx(101.4), "c4 (validation)": 69.6
    }  # fmt: skip


def test_columns_of_a_csv_have_distinct_names(frame: pd.DataFrame) -> None:
    heads = render.csv(views.table("perplexity", frame)).partition("\n")[0].split(",")
    assert {"model", "model_perplexity", "repair", "repair_perplexity"} <= set(heads) and len(set(heads)) == len(heads)


def test_cost_table_tells_tokens_of_the_search_from_those_of_training() -> None:
    suite = Suite()
    for seed in (0, 1):
        suite.add(130.0, seed=seed, seconds=4.0 + seed, achieved_sparsity=0.5)
        suite.local(30.0, seed=seed, seconds=110.0 + 10 * seed, search_tokens=5120)
    alone, local = lines("cost", suite.frame)
    assert (alone["seconds"], alone["training_tokens"], alone["achieved_sparsity"]) == ("4.5", "", "0.5")
    assert (local["seconds"], local["seconds_stderr"]) == ("115.0", "5.0")
    assert (local["training_tokens"], local["search_tokens"]) == ("16384", "5120")
    assert "16,384 |" in shown("cost", suite.frame)


def test_seeds_table() -> None:
    suite = Suite()
    for seed, value in enumerate((30.0, 31.0, 35.0)):
        suite.local(value, seed=seed)
    suite.add(130.0)  # one seed
    (line,) = lines("seeds", suite.frame)
    assert (line["perplexity"], line["lowest"], line["highest"], line["seeds"]) == ("32.0", "30.0", "35.0", "3")
    assert float(line["deviation"]) == pytest.approx(math.sqrt(7))
    assert float(line["perplexity_stderr"]) == pytest.approx(math.sqrt(7 / 3))
    assert float(line["relative"]) == pytest.approx(100 * math.sqrt(7) / 32)


# --- other measures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["test", "validation"])
def test_drift_table_is_of_the_last_block_in_and_out_of_the_distribution(other: str) -> None:
    """Of data that are not tested on, such as C4, on validation text; what is tested on is shown by its test split."""
    suite, known = Suite(), {}
    for seed, (name, more) in product((0, 1), (("wiki", 1.0), ("german", 2.0))):
        for window, size in (("attention_mlp", 0.1), ("block", 0.05)):
            run = known.setdefault((seed, window), None) or suite.local(30.0, seed=seed, window=window)
            known[seed, window] = run
            for block, factor in enumerate((1.0, 2.0)):
                at = run | {"dataset": name, "length": 256, "position": str(block)}
                if name == "wiki":
                    suite.records.append(at | {"split": "validation", "metric": "drift_local", "value": 9.0})
                at |= {"split": "test" if name == "wiki" else other}
                value = more * size * factor + 0.02 * seed
                suite.records.append(at | {"metric": "drift_local", "value": value})
                suite.records.append(at | {"metric": "drift_accumulated", "value": 3 * value})
    found = list(csv.DictReader(io.StringIO(render.csv(views.table("drift", suite.frame)))))
    assert [(line["dataset"], line["domain"], line["variant"]) for line in found] == [
        ("german", "out", "attention_mlp"), ("german", "out", "block"),
        ("wiki", "in", "attention_mlp"), ("wiki", "in", "block"),
    ]  # fmt: skip
    numbers = [[float(line[key]) for key in ("drift_local", "drift_accumulated", "accumulation")] for line in found]
    np.testing.assert_allclose(numbers, [[0.41, 1.23, 3], [0.21, 0.63, 3], [0.21, 0.63, 3], [0.11, 0.33, 3]])
    assert float(found[3]["drift_local_mean"]) == pytest.approx((0.06 + 0.11) / 2)
    assert float(found[0]["drift_local_stderr"]) == pytest.approx(0.01)


def test_drift_compares_windows_in_one_setting() -> None:
    suite = Suite()
    # value is the drift that a line shows; validation perplexities would choose what is not of the setting
    for value, validation, changes in [
        (0.1, 40.0, {}), (0.2, 30.0, {"learning_rate": "0.01"}), (0.9, 10.0, {"loss": "cosine"}),
        (0.9, 10.0, {"parametrization": LORA}), (0.9, 10.0, {"targets": "k_proj + up_proj"}),
        (0.3, 20.0, {"window": "matrix"}), (0.4, 20.0, {"window": "matrix", "flow": "official_matrix"}),
        (0.5, 20.0, {"flow": "sparse_local"}), (0.9, 10.0, {"flow": "sparse_local", "loss": "cosine"}),
        (0.9, 10.0, {"window": "block", "flow": "sparse_local"}), (0.6, 20.0, EXACT | {"parametrization": "full"}),
        (0.9, 10.0, {"training_sequences": 128}),
    ]:  # fmt: skip
        suite.drift(suite.local(30.0, validation, **changes), value)
    suite.drift(suite.local(30.0, 30.0, learning_rate="0.01", seed=1), 0.9)  # the other lines lack this seed
    suite.drift(suite.add(130.0), 0.7)
    suite.drift(suite.add(140.0, seed=1), 0.9)
    suite.drift(suite.add(35.0, **RETRAINED), 0.8)
    suite.drift(suite.add(25.0, **RETRAINED | {"training_sequences": 128}), 0.9)
    frame = studies.drifts(suite.frame, "x")
    named = frame[list(studies.LINES)[:3]].astype("object").fillna("")
    found = {tuple(line): set(group) for line, group in frame["value"].groupby([named[axis] for axis in named])}
    assert found == {
        ("none", "", ""): {0.7}, ("matrix_exact", "", ""): {0.6}, ("matrix", "", ""): {0.3},
        ("official_matrix", "", ""): {0.4}, ("attention_mlp", "", ""): {0.2},
        ("attention_mlp", "sparse_local", ""): {0.5}, ("retrain", "", "cross_entropy"): {0.8},
    }  # fmt: skip
    assert "flow Dense, loss MSE, trained matrices all, parametrization All parameters" in shown("drift", suite.frame)


def tasks() -> Suite:
    suite = Suite()
    suite.tasks(suite.dense, boolq=0.8, rte=0.6)
    for seed in (0, 1):
        suite.tasks(suite.add(40.0, seed=seed), boolq=0.6, rte=0.5)
        suite.tasks(suite.local(30.0, seed=seed), boolq=0.7 + 0.02 * seed, rte=0.55)
    suite.tasks(suite.local(30.0, window="block", seed=1), boolq=0.75, rte=0.5)
    return suite


def test_zero_shot_table_has_chance_dense_pruned_and_recovered_in_percent() -> None:
    found = lines("zero_shot", tasks().frame)
    assert [line["variant"] for line in found] == ["chance", "dense", "none", "attention_mlp", "block"]
    numbers = [[float(line[task]) for task in ("boolq", "rte", "acc_mean")] for line in found]
    # the seed that all recoveries have
    np.testing.assert_allclose(numbers, [[50, 50, 50], [80, 60, 70], [60, 50, 55], [72, 55, 63.5], [75, 50, 62.5]])
    assert bold("zero_shot", tasks().frame) == ["55.00 ± 1.00", "63.50 ± 1.00", "75.00 ± 1.00"]


def test_every_accuracy_of_a_task_is_shown_and_the_mean_is_that_of_acc() -> None:
    suite = tasks()
    runs = [record for record in suite.records if (record["metric"], record["dataset"]) == ("acc", "rte")]
    more = [
        run | {"metric": "acc_norm", "value": value} for run, value in zip(runs, (9, 1, 2, 3, 4.1, 4.7), strict=True)
    ]
    more += [run | {"metric": "exact_match", "dataset": "gsm8k", "position": way, "value": value} for run in runs
             for way, value in (("strict", 0.1), ("flexible", 0.3))]  # fmt: skip
    chance, dense, *_, block = lines("zero_shot", rows.to_frame([*suite.records, *more]))
    assert (dense["rte"], dense["rte_acc_norm"], dense["acc_mean"], block["rte_acc_norm"]) == (
        "60.0", "900.0", "70.0", "470.0"
    )  # fmt: skip
    assert (dense["gsm8k_strict"], dense["gsm8k_flexible"], chance["gsm8k_strict"]) == ("10.0", "30.0", "")
    assert chance["acc_mean"] == "50.0", "guessing at tasks that have acc"


def test_published_numbers_stand_beside_ours() -> None:
    suite = criteria({"wanda": (12.0, 10.0)})
    suite.add(11.5, refinement="exact")
    suite.tasks(suite.records[3], boolq=0.68)
    at = {"model": "Llama-2-7B"}
    records: list[Record] = [
        record | at | ({"metric": "ppl@4096", "length": 4096, "dataset": "WikiText2" if record["dataset"] == "wiki" else
                        "german"} if record["metric"] == "ppl@256" else {}) for record in suite.records
    ]  # fmt: skip
    found = list(csv.DictReader(io.StringIO(render.csv(views.table("published", rows.to_frame(records))))))
    ppl = {(line["criterion"], line["source"].split("/")[-1]): line for line in found if line["measure"] == "ppl"}
    ours = [float(ppl["wanda", "exp_results.png)"][key]) for key in ("published", "ours", "difference")]
    assert ours == pytest.approx([11.29, 12.0, 0.71])
    assert {line["variant"] for line in found} == {"dense", "none"}
    assert {float(line["published"]) for line in found if line["measure"] == "acc"} == {0.677, 0.68}
    with pytest.raises(
        FreelunchError, match=r"finds no published number for suite s; published: llama-13b .*; measured: m"
    ):
        views.table("published", suite.frame)


def test_a_recovered_model_stands_beside_published_recovered_ones() -> None:
    line = {"source": "arXiv:1", "model": "m", "criterion": "wanda", "pattern": "2:4", "recovery": "lora",
            "dataset": "wiki", "length": 256, "metric": "ppl", "value": 9.0}  # fmt: skip
    theirs = pd.DataFrame([line]).astype({"length": "Int64"})
    joined = tables.beside_published(criteria({"wanda": (12.0, 10.0)}).frame, theirs, "x")
    assert list(joined["value"]) == [10.0] and list(joined["published_recovery"]) == ["lora"]


def test_every_reference_has_a_source_and_parses() -> None:
    found = tables.references()
    assert len(found) > 100
    assert found["source"].str.contains(r"arXiv:\d{4}\.\d{5}|github\.com/\S+/\S+").all()
    assert not found.duplicated(["source", "model", "criterion", "pattern", "dataset", "length", "metric"]).any()
    for pattern in set(found["pattern"]) - {"dense"}:
        parse_pattern(pattern)
    assert set(found["criterion"]) <= set(text.TEXT["values"]["criterion"])
    assert found[found["metric"] == "ppl"]["length"].isin([2048, 4096]).all()
    assert found[found["metric"] == "acc"]["value"].between(0, 1).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "its columns are not source, model"),
        (",".join(tables.PUBLISHED) + "\n,m,wanda,2:4,none,w,2048,ppl,3\n", "a row lacks its source"),
        (",".join(tables.PUBLISHED) + "\ns,m,wanda,2:4,none,w,2048,ppl,low\n", "could not convert"),
        (None, "there are no published numbers"),
    ],
)
def test_references_that_cannot_be_read_are_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "x.csv").write_text(content)
    with pytest.raises(FreelunchError, match=message):
        tables.references(tmp_path)


# --- writing ---------------------------------------------------------------------------------------------------------


def test_latex_is_booktabs_and_escaped_and_long_tables_are_broken_over_pages() -> None:
    suite = criteria({"magnitude": (1.25e6, 78.9), "wanda": (33.8, 27.2)})
    records = [
        record | {"suite": "a_b", "model": "m_1 & 50%"} for record in suite.records if record["dataset"] == "wiki"
    ]
    table = views.table("perplexity", rows.to_frame(records))
    written = render.latex(table)
    assert r"m\_1 \& 50\% & Magnitude & 2:4 & 14.00 $\pm$ 0.30 & $1.250\times 10^{6}$ $\pm$ 0.3000 &" in written
    assert r"\textbf{27.20 $\pm$ 0.30}" in written and r"\label{tab:a_b-perplexity}" in written
    assert [written.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    assert written.partition(r"\midrule")[2].count("m\\_1") == 1, "a label is written once over its lines"
    assert render.escaped("50%_{a}$#~^\\") == r"50\%\_\{a\}\$\#\textasciitilde{}\textasciicircum{}\textbackslash{}"
    many = [((*key[:-1], str(copy)), cells) for copy in range(render.PAGE) for key, cells in table.lines]
    long = render.latex(replace(table, lines=many))
    assert r"\begin{longtable}" in long and r"\begin{table}" not in long
    assert long.count("lower is better") == 1, "the caption is not repeated on every page"


def test_files_are_the_same_bytes_and_markdown_is_escaped(tmp_path: Path) -> None:
    suite = criteria({"wanda": (33.8, 27.2)}, model="a|b*c")
    for folder in ("x", "y"):
        render.write(views.table("perplexity", rows.to_frame(suite.records[:: 1 if folder == "x" else -1])),
                     tmp_path / folder / "v1.0")  # fmt: skip
    names = sorted(path.name for path in (tmp_path / "x").iterdir())
    assert names == ["v1.0.csv", "v1.0.md", "v1.0.tex"]
    assert all((tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes() for name in names)
    written = (tmp_path / "x" / "v1.0.md").read_text(encoding="utf-8")
    assert r"| a\|b\*c" in written and "**27.20 ± 0.30**" in written


def test_the_protocol_tells_how_runs_were_made() -> None:
    suite = criteria({"wanda": (33.8, 27.2)})
    assert render.protocol(suite.frame[suite.frame["dataset"] == "wiki"]) == (
        "Protocol: m (1M parameters); calibrated on wiki, 32 sequences of 256 tokens; trained for 2 epochs, learning "
        "rate 0.001; perplexity on test text of wiki in windows of 256 tokens; seed 0."
    )
    assert "m (1M parameters, trained here from random weights on c)" in render.protocol(
        suite.frame.assign(trained_on="c")
    )


@pytest.mark.parametrize("name", [*views.TABLES])
def test_what_a_suite_lacks_is_named(name: str) -> None:
    suite = Suite()
    suite.add(130.0)
    if name in ("perplexity", "cost"):
        suite.records = suite.records[:3]
    with pytest.raises(FreelunchError, match=rf"table {name} (needs .*; suite s has none|finds no published number)"):
        views.table(name, suite.frame)
    with pytest.raises(FreelunchError, match="there is no table 'windw'; did you mean 'window'"):
        views.table("windw", suite.frame)
