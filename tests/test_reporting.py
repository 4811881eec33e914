"""Rows to tables and figures: contents, markings, bytes, and rows that lack something."""

from __future__ import annotations

import csv
import io
import math
import pkgutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from freelunch import reporting
from freelunch.errors import FreelunchError
from freelunch.reporting import figures, labels, rendering, rows, style, tables
from freelunch.reporting.estimates import estimate
from freelunch.results.code import sources

BLOCKS, STEPS = 4, (0, 8, 16)
DENSE = 14.06
PERPLEXITY = {
    ("magnitude", "50%"): {"none": 288.4, "attention_mlp": 78.9, "block": 74.2},
    ("magnitude", "2:4"): {"none": 801.0, "attention_mlp": 118.2, "block": 120.3},
    ("wanda", "50%"): {"none": 33.8, "attention_mlp": 27.2, "block": 25.61},
    ("wanda", "2:4"): {"none": 130.2, "attention_mlp": 61.1, "block": 50.4},
}
FIGURES, TABLES = ("gain", "perplexity", "validation_loss"), ("cost", "perplexity")
"""Views that need no comparison; for the others see `test_reporting_recovery.py`."""
Record = dict[str, Any]


def perplexity(run: Record, value: float) -> Record:
    return run | {"metric": "ppl@256", "dataset": "wiki", "split": "test", "length": 256, "value": value, "stderr": 0.3}


def losses(run: Record, window: str) -> list[Record]:
    halves = [""] if window == "block" else [".attention", ".mlp"]
    found = []
    for block in range(BLOCKS):
        for half in halves:
            at = run | {"position": f"{block}{half}"}
            # the loss falls to 1 - 0.1 (block + 1) and rises again at the last step
            start, best = 0.5 * (block + 1), 0.5 * (block + 1) * (0.9 - 0.1 * block)
            values = (start, best, 0.95 * start)
            found += [
                at | {"metric": "validation_loss", "step": s, "value": v} for s, v in zip(STEPS, values, strict=True)
            ]
            found.append(at | {"metric": "best_validation_loss", "step": STEPS[1], "value": best})
    return found


def records(seeds: tuple[int, ...] = (0,)) -> list[Record]:
    base = {"suite": "demo", "model": "SmolLM2-135M", "calibration": "wiki", "sequences": 64, "sampling": "packed"}
    dense = base | {"run": "dense", "criterion": "dense", "pattern": "dense", "recovery": "none", "sparsity": 0.0}
    found = [perplexity(dense, DENSE)]
    for seed in seeds:
        for (criterion, pattern), values in PERPLEXITY.items():
            for window, value in values.items():
                run: Record = base | {
                    "run": f"{criterion}-{pattern}-{window}-{seed}",
                    "seed": seed,
                    "criterion": criterion,
                    "pattern": pattern,
                    "sparsity": 0.5,
                    "achieved_sparsity": 0.5,
                    "recovery": "none",
                    "seconds": 4.0 + seed,
                    "peak_gib": 1.9,
                }
                if window != "none":
                    run |= {"recovery": "reconstruct", "window": window, "learning_rate": "0.0005"}
                    run |= {"epochs": 2, "training_tokens": 32768, "seconds": 110.0 + 10 * seed}
                    found += losses(run, window)
                found.append(perplexity(run, value + seed))
    return found


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return rows.to_frame(records())


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# --- rows ------------------------------------------------------------------------------------------------------------


def test_rows_do_not_depend_on_the_order_of_records(frame: pd.DataFrame) -> None:
    again = rows.to_frame(records()[::-1])
    pd.testing.assert_frame_equal(frame, again)
    assert tuple(frame.columns) == rows.COLUMNS
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == rows.DTYPES


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_rows_survive_writing_and_writing_is_deterministic(frame: pd.DataFrame, tmp_path: Path, suffix: str) -> None:
    first, second = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    rows.write(frame, first)
    rows.write(rows.to_frame(records()[::-1]), second)
    assert first.read_bytes() == second.read_bytes()
    pd.testing.assert_frame_equal(rows.read_rows(first), frame)


def test_special_values_survive_csv(tmp_path: Path) -> None:
    base = {"suite": "s", "run": "r", "recovery": "none", "window": 3, "metric": "m"}
    values = [0.1 + 0.2, math.inf, math.nan, 1e6]
    frame = rows.to_frame([base | {"step": step, "value": value} for step, value in enumerate(values)])
    rows.write(frame, tmp_path / "rows.csv")
    again = rows.read_rows(tmp_path / "rows.csv")
    np.testing.assert_array_equal(again["value"].to_numpy(), values)
    assert list(again["recovery"]) == ["none"] * 4
    assert list(again["window"]) == ["3"] * 4
    assert again["dataset"].isna().all()


def test_positions_are_sorted_as_numbers() -> None:
    base = {"suite": "s", "run": "r", "metric": "matrix_sparsity", "value": 0.5}
    frame = rows.to_frame([base | {"position": position} for position in ("10.mlp", "9.mlp", "9.attention")])
    assert list(frame["position"]) == ["9.attention", "9.mlp", "10.mlp"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"perplexity": 3.0}, "no column 'perplexity'"),
        ({"lenght": 3}, "did you mean 'length'"),
        ({"value": "low"}, "column value"),
        ({"epochs": 1.5}, "column epochs"),
        ({"versions": {"torch": "2"}}, "column versions"),
        ({"value": 2.0}, "two rows of the same metric"),
        ({"metric": "other", "window": "block"}, "rows differ in window"),
    ],
)
def test_wrong_records_are_refused(change: Record, message: str) -> None:
    good = {"suite": "s", "run": "r", "metric": "m", "value": 1.0, "window": "attention_mlp"}
    with pytest.raises(FreelunchError, match=message):
        rows.to_frame([good, good | {"step": 1} | change if "step" in change else good | change])


def test_files_that_are_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FreelunchError, match="cannot read"):
        rows.read_rows(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(FreelunchError, match="not the columns of rows"):
        rows.read_rows(tmp_path / "other.csv")


# --- tables ----------------------------------------------------------------------------------------------------------


def test_perplexity_table_holds_the_values_of_the_rows(frame: pd.DataFrame) -> None:
    lines = read_csv(rendering.render(reporting.tabulate("perplexity", frame), "csv"))
    assert [(line["criterion"], line["pattern"]) for line in lines] == list(PERPLEXITY)
    for line in lines:
        wanted = PERPLEXITY[line["criterion"], line["pattern"]] | {"dense": DENSE}
        assert {name: float(line[name]) for name in wanted} == wanted
        assert (line["dataset"], line["length"], line["model"]) == ("wiki", "256", "SmolLM2-135M")


def test_markdown_marks_the_best_of_each_row(frame: pd.DataFrame) -> None:
    text = rendering.render(reporting.tabulate("perplexity", frame), "md")
    body = [line for line in text.splitlines() if line.startswith("| SmolLM2")]
    bold = [[cell.strip() for cell in line.split("|") if "**" in cell] for line in body]
    assert bold == [["**74.20** ± 0.30"], ["**118.2** ± 0.3"], ["**25.61** ± 0.30"], ["**50.40** ± 0.30"]]
    assert "Test perplexity on wiki" in text
    assert "256 tokens" in text
    assert "one seed" in text


def test_latex_is_booktabs_and_escaped() -> None:
    changed = [record | {"suite": "a_b", "model": "m_1 & 50%"} for record in records()]
    text = rendering.render(reporting.tabulate("perplexity", rows.to_frame(changed)), "tex")
    assert r"m\_1 \& 50\% & Magnitude & 50\% & 14.06 $\pm$ 0.30" in text
    assert r"\textbf{25.61} $\pm$ 0.30" in text
    assert r"\label{tab:a_b-perplexity}" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    body = text.partition(r"\midrule")[2]
    assert body.count("m\\_1") == 1, "a label is written once over its lines"
    assert rendering.latex("50%_{a}$#~^\\") == r"50\%\_\{a\}\$\#\textasciitilde{}\textasciicircum{}\textbackslash{}"


def test_a_latex_table_that_no_page_holds_is_broken_over_pages() -> None:
    table = reporting.tabulate("perplexity", rows.to_frame(records()))
    assert r"\begin{tabular}" in rendering.render(table, "tex")
    lines = [((*key[:-1], str(copy)), cells) for copy in range(rendering.PAGE) for key, cells in table.lines]
    text = rendering.render(replace(table, lines=lines), "tex")
    assert r"\begin{tabular}" not in text and r"\begin{table}" not in text
    head, rest = text.split(r"\endhead")
    assert head.index(r"\caption") < head.index(r"\label") < head.index(r"\toprule")
    assert rest.rstrip().endswith("\\bottomrule\n\\end{longtable}") and rest.count("\\\\") == len(lines)


def test_seeds_become_mean_and_standard_error() -> None:
    table = reporting.tabulate("perplexity", rows.to_frame(records((0, 1))))
    line = read_csv(rendering.render(table, "csv"))[0]
    assert float(line["block"]) == pytest.approx(74.7)
    assert float(line["block_stderr"]) == pytest.approx(0.5)
    assert (line["block_runs"], line["dense_runs"]) == ("2", "1")
    text = rendering.render(table, "md")
    assert "**74.70** ± 0.50 |" in text
    assert "14.06 ± 0.30† |" in text
    assert "standard error over seeds" in text


def test_equal_numbers_are_equally_bold() -> None:
    changed = records()
    for record in changed:
        if record["run"] == "wanda-50%-attention_mlp-0" and record["metric"] == "ppl@256":
            record["value"] = 25.611
    text = rendering.render(reporting.tabulate("perplexity", rows.to_frame(changed)), "md")
    assert text.count("**25.61**") == 2


def test_levels_are_added_only_where_they_vary() -> None:
    changed = records()
    assert reporting.tabulate("perplexity", rows.to_frame(changed)).levels == ("model", "criterion", "pattern")
    changed += [
        record | {"run": record["run"] + "-slow", "learning_rate": "0.0001", "value": record["value"] + 1}
        for record in records()
        if record.get("window") == "block"
    ]
    changed += [
        record | {"dataset": "c4", "value": 2 * record["value"]} for record in changed if record["metric"] == "ppl@256"
    ]
    table = reporting.tabulate("perplexity", rows.to_frame(changed))
    assert table.levels == ("model", "dataset", "criterion", "pattern", "learning_rate")
    lines = {
        (line["dataset"], line["criterion"], line["pattern"], line["learning_rate"]): line
        for line in read_csv(rendering.render(table, "csv"))
    }
    assert len(lines) == 16
    slow = lines["c4", "wanda", "50%", "0.0001"]
    assert float(slow["block"]) == 2 * (25.61 + 1)
    assert float(slow["none"]) == 2 * 33.8, "what is not recovered has no learning rate and stands beside each"
    assert (slow["attention_mlp"], slow["attention_mlp_runs"]) == ("", "0")


def test_data_without_a_test_split_are_shown_by_their_validation_split() -> None:
    """As the literature does with C4; what has a test split is never shown by another."""
    ppl = [record for record in records() if record["metric"] == "ppl@256"]
    chosen = [record | {"split": "validation", "value": 1.0} for record in ppl]
    c4 = [record | {"dataset": "c4", "split": "validation", "value": 2 * record["value"]} for record in ppl]
    both = rows.to_frame([*records(), *chosen, *c4])
    table = reporting.tabulate("perplexity", both)
    assert table.levels == ("model", "dataset", "criterion", "pattern")
    lines = read_csv(rendering.render(table, "csv"))
    found = {(line["dataset"], float(line["none"])) for line in lines if line["criterion"] == "wanda"}
    assert found == {("wiki", 33.8), ("wiki", 130.2), ("c4 (validation)", 67.6), ("c4 (validation)", 260.4)}
    text = rendering.render(table, "md")
    assert "Perplexity in non-overlapping windows of 256 tokens" in text and "Test perplexity" not in text
    assert "perplexity on test text of wiki and validation text of c4 in windows of 256 tokens" in text
    figure = reporting.draw("perplexity", both)
    axes = {axis.get_ylabel() for axis in figure.axes}
    assert axes == {"Test perplexity\n(wiki, 256 tokens)", "Perplexity\n(c4 (validation), 256 tokens)"}
    alone = rendering.render(reporting.tabulate("perplexity", rows.to_frame(c4)), "md")
    assert "Perplexity on c4 (validation) in non-overlapping windows of 256 tokens" in alone


def test_runs_of_other_calibration_sets_are_not_taken_for_seeds() -> None:
    changed = [record | {"validation_sequences": 8} for record in records()]
    changed += [
        record | {"run": record["run"] + "-16", "validation_sequences": 16, "value": record["value"] + 1}
        for record in records()[1:]
    ]
    table = reporting.tabulate("perplexity", rows.to_frame(changed))
    lines = read_csv(rendering.render(table, "csv"))
    found = {line["validation_sequences"]: float(line["none"]) for line in lines if line["criterion"] == "wanda"}
    assert found == {"8": 130.2, "16": 131.2}
    assert {line["none_runs"] for line in lines} == {"1"}


def test_cost_table(frame: pd.DataFrame) -> None:
    lines = read_csv(rendering.render(reporting.tabulate("cost", rows.to_frame(records((0, 1)))), "csv"))
    assert len(lines) == 12
    first, second = lines[:2]
    assert (first["variant"], first["seconds"], first["training_tokens"]) == ("none", "4.5", "")
    assert (second["variant"], second["seconds"], second["seconds_stderr"]) == ("attention_mlp", "115.0", "5.0")
    assert (second["training_tokens"], second["achieved_sparsity"], second["peak_gib"]) == ("32768", "0.5", "1.9")
    assert "| 110.0 | 1.90 | 32,768 | – | 0.5000 |" in rendering.render(reporting.tabulate("cost", frame), "md")


def test_cost_table_tells_tokens_of_the_search_from_those_of_training() -> None:
    tokens = {"learning_rate": "auto", "search_tokens": 5120, "training_tokens": 8192}
    changed = [record | (tokens if record.get("window") == "block" else {}) for record in records()]
    text = rendering.render(reporting.tabulate("cost", rows.to_frame(changed)), "md")
    assert "| Training tokens | Search tokens |" in text
    assert "| 8,192 | 5,120 | 0.5000 |" in text
    assert "| 32,768 | – | 0.5000 |" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (14.064, "14.06"),
        (99.996, "100.0"),
        (288.44, "288.4"),
        (1234.4, "1,234"),
        (1.2e6, "1.200×10^6"),
        (0.5, "0.5000"),
        (math.inf, "∞"),
        (math.nan, "NaN"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert rendering.number(value) == text


def test_a_diverged_seed_is_not_averaged_away() -> None:
    assert estimate([1.0, math.inf]).value == math.inf
    assert math.isnan(estimate([1.0, math.nan]).value)
    assert estimate([225.0007] * 3).stderr == 0.0, "and not what is left of rounding"


def test_table_files(frame: pd.DataFrame, tmp_path: Path) -> None:
    table = reporting.tabulate("perplexity", frame)
    for path in rendering.write(table, tmp_path / "tables" / "v1.0"):
        assert path.read_text(encoding="utf-8") == rendering.render(table, path.suffix[1:])  # type: ignore[arg-type]
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == ["v1.0.csv", "v1.0.md", "v1.0.tex"]


# --- figures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_labelled_and_reproducible(frame: pd.DataFrame, tmp_path: Path, name: str) -> None:
    import matplotlib

    figure = reporting.draw(name, frame)
    panels = [axis for axis in figure.axes if axis.axison and axis.get_label() != "<colorbar>"]
    assert panels[-1].get_xlabel()
    assert panels[0].get_ylabel()
    units = {"gain": "%", "perplexity": "256 tokens", "validation_loss": "loss / initial loss"}
    assert units[name] in panels[0].get_ylabel()
    first = style.save(figure, tmp_path / "a" / name)
    with matplotlib.rc_context({"font.size": 20, "axes.grid": False}):
        second = style.save(reporting.draw(name, frame), tmp_path / "b" / name)
    assert [path.suffix for path in first] == [".pdf", ".svg", ".png"]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.suffix
        assert len(one.read_bytes()) > 5000


def test_perplexity_figure_prints_the_values(frame: pd.DataFrame) -> None:
    (axis,) = reporting.draw("perplexity", frame).axes
    wanted = {style.printed(value) for values in PERPLEXITY.values() for value in (*values.values(), DENSE)}
    assert {text.get_text() for text in axis.texts} == wanted
    assert axis.get_yscale() == "log"
    low, high = axis.get_ylim()
    assert low < DENSE
    assert high > 801
    dashed = [line for line in axis.lines if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0] for line in dashed] == [DENSE]


def test_the_perplexity_caption_names_whatever_differs(frame: pd.DataFrame) -> None:
    assert reporting.describe("perplexity", frame).startswith("Here: Magnitude, 50%: Dense 14.1, ")
    other = [record | {"run": f"other-{record['run']}", "model": "OPT-125M"} for record in records()]
    wiser = [record | {"run": f"owl-{record['run']}", "allocation": "owl"} for record in records()]
    said = reporting.describe("perplexity", rows.to_frame([*records(), *other]))
    assert [said.count(f"{model}, Magnitude, 50%: ") for model in ("OPT-125M", "SmolLM2-135M")] == [1, 0]
    assert "OPT-125M, Wanda, 2:4: " in said and "(4 more above.)" in said
    wanda = [record for record in [*records(), *wiser] if record["criterion"] == "wanda"]
    said = reporting.describe("perplexity", rows.to_frame(wanda))
    assert "Allocation: OWL, Wanda, 50%: " in said and "Here: Wanda, 50%: " in said


def test_gain_figure_shows_the_gains_and_the_legend_once(frame: pd.DataFrame) -> None:
    figure = reporting.draw("gain", frame)
    assert [axis.get_title() for axis in figure.axes] == [
        "Magnitude, 50%",
        "Magnitude, 2:4",
        "Wanda, 50%",
        "Wanda, 2:4",
    ]
    for line in figure.axes[0].lines:
        np.testing.assert_allclose(line.get_xdata(), range(BLOCKS))
        np.testing.assert_allclose(line.get_ydata(), [10, 20, 30, 40])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == ["Attention half", "MLP half", "Block"]


def test_captions_of_losses_have_the_numbers() -> None:
    # losses of block i fall by (10 + 10 i) % at best, and end at 95 % of where they began
    found = [record for record in records() if record["criterion"] == "wanda" or record["criterion"] == "dense"]
    most, middle = 10 * BLOCKS, 5 * (BLOCKS + 1)
    said = reporting.describe("gain", rows.to_frame(found))
    assert said.startswith("Here: median fall of the validation loss, lowest to highest, over windows. Wanda, ")
    assert f"MLP half {middle}% (10 to {most})" in said and f"Block {middle}% (10 to {most})" in said
    said = reporting.describe("validation_loss", rows.to_frame(found))
    assert f"Attention half 0.95 (0 of {BLOCKS} above)" in said
    for record in found:
        if record["metric"] == "validation_loss" and record["step"] == STEPS[-1] and record["position"] == "0":
            record["value"] = math.nan if record["pattern"] == "2:4" else 2.0
    said = reporting.describe("validation_loss", rows.to_frame(found))
    assert said.count(f"(1 of {BLOCKS} above)") == 2 and "Block nan" not in said


def test_validation_loss_figure_has_a_line_per_window(frame: pd.DataFrame) -> None:
    figure = reporting.draw("validation_loss", frame)
    *panels, bar = figure.axes
    assert len(panels) == 4 * 3
    for panel in panels:
        curves = panel.collections[0].get_segments()
        assert len(curves) == BLOCKS
        for block, curve in enumerate(curves):
            np.testing.assert_allclose(curve, [(0, 1), (8, 0.9 - 0.1 * block), (16, 0.95)])
    assert bar.get_ylabel() == "Depth (block)"


def test_windows_of_several_blocks_are_drawn_over_their_span() -> None:
    run = {"suite": "s", "run": "r", "model": "m", "criterion": "wanda", "pattern": "2:4", "recovery": "reconstruct"}
    found = []
    for position in ("0-2", "3-5", "6"):
        at = run | {"window": 3, "position": position}
        found.append(at | {"metric": "validation_loss", "step": 0, "value": 2.0})
        found.append(at | {"metric": "best_validation_loss", "step": 5, "value": 0.5})
    figure = reporting.draw("gain", rows.to_frame(found))
    (line,) = figure.axes[0].lines
    np.testing.assert_allclose(line.get_xdata(), [1, 4, 6])
    np.testing.assert_allclose(line.get_ydata(), [75, 75, 75])
    spans = [segment[:, 0].tolist() for segment in figure.axes[0].collections[0].get_segments()]
    assert spans == [[0, 2], [3, 5], [6, 6]]
    assert [text.get_text() for text in figure.legends[0].texts] == ["3 blocks"]


@pytest.mark.parametrize("name", FIGURES)
def test_one_run_is_enough(name: str) -> None:
    found = [record for record in records() if record["run"] in ("dense", "wanda-50%-block-0")]
    figure = reporting.draw(name, rows.to_frame(found))
    figure.canvas.draw()
    assert figure.get_figwidth() == style.SINGLE


@pytest.mark.parametrize("name", FIGURES)
def test_values_that_are_not_finite_are_shown_as_such(name: str) -> None:
    changed = records()
    for record in changed:
        if record["run"] == "wanda-50%-block-0":
            record["value"] = math.inf if record["metric"] == "ppl@256" else math.nan
        if record["run"] == "magnitude-2:4-none-0":
            record["value"] = 1.2e6
    figure = reporting.draw(name, rows.to_frame(changed))
    figure.canvas.draw()
    texts = {text.get_text() for axis in figure.axes for text in axis.texts}
    assert texts >= ({"∞", "1.2×10⁶"} if name == "perplexity" else {"4 windows not finite"})


@pytest.mark.parametrize(
    ("name", "kept", "message"),
    [
        ("gain", lambda r: r["recovery"] == "none", "figure gain needs reconstructed runs; suite demo has none"),
        ("validation_loss", lambda r: r["recovery"] == "none", "figure validation_loss needs reconstructed runs"),
        ("gain", lambda r: r["metric"] != "best_validation_loss", "needs the metric best_validation_loss"),
        ("gain", lambda r: r.get("step") != 0, "needs validation losses at step 0"),
        ("perplexity", lambda r: r["metric"] != "ppl@256", "figure perplexity needs a perplexity of pruned"),
        ("perplexity", lambda r: r["run"] == "dense", "needs a perplexity of pruned runs; suite demo"),
    ],
)
def test_missing_rows_are_named(name: str, kept: Any, message: str) -> None:
    frame = rows.to_frame([record for record in records() if kept(record)])
    with pytest.raises(FreelunchError, match=message):
        reporting.draw(name, frame)


def test_tables_name_missing_rows() -> None:
    dense = rows.to_frame(records()[:1])
    for name in TABLES:
        with pytest.raises(FreelunchError, match=rf"table {name} needs .*suite demo has none"):
            reporting.tabulate(name, dense)


# --- names, labels, captions, dependencies ---------------------------------------------------------------------------


def test_names_are_those_of_the_registries() -> None:
    modules = {module.name for module in pkgutil.iter_modules(figures.__path__)}
    assert set(reporting.FIGURE_NAMES) == set(reporting.FIGURES) == modules
    assert set(reporting.TABLE_NAMES) == set(reporting.TABLES)
    with pytest.raises(FreelunchError, match="did you mean 'gain'"):
        reporting.draw("gains", pd.DataFrame())
    assert {module.name for module in pkgutil.iter_modules(tables.__path__)} == set(reporting.TABLE_NAMES)
    with pytest.raises(FreelunchError, match="did you mean 'cost'"):
        reporting.tabulate("costs", pd.DataFrame())
    with pytest.raises(FreelunchError, match="did you mean 'gain'"):
        reporting.describe("gains", pd.DataFrame())


def test_names_import_nothing_heavy() -> None:
    import subprocess
    import sys

    code = "import sys, freelunch.reporting.names; print(sorted({'pandas', 'matplotlib', 'numpy'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


@pytest.mark.parametrize("name", reporting.FIGURE_NAMES)
def test_a_figure_depends_on_its_own_module_only(name: str) -> None:
    files = {Path(file).as_posix().split("/freelunch/")[-1] for file in sources(f"reporting.figures.{name}")}
    assert f"reporting/figures/{name}.py" in files
    others = {f"reporting/figures/{other}.py" for other in reporting.FIGURE_NAMES if other != name}
    assert not files & (others | {"reporting/table.py", "reporting/rendering.py", "config.py"})


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("criterion", "magnitude", "Magnitude"),
        ("window", "attention_mlp", "Attention / MLP"),
        ("window", "block", "Block"),
        ("window", "3", "3 blocks"),
        ("variant", "none", "Not recovered"),
        ("pattern", "2:4", "2:4"),
        ("learning_rate", "0.0001", "0.0001"),
        ("window", "matrix_exact", "Matrix, exact"),
        ("window", "k_proj", "k_proj"),
        ("parametrization", "full + biases + norms", "All parameters"),
        ("parametrization", "full + norms", "Weights + norms"),
        ("parametrization", "lora_prune(rank=8) + biases", "LoRA-Prune (rank=8) + biases"),
    ],
)
def test_labels(name: str, value: Any, text: str) -> None:
    assert labels.value(name, value) == text


def test_values_come_in_reading_order() -> None:
    windows = sorted(["block", "10", "none", "2", "attention_mlp", "dense"], key=lambda v: labels.order("variant", v))
    assert windows == ["dense", "none", "attention_mlp", "block", "2", "10"]
    windows = sorted(["model", "3", "matrix", "key_up", "retrain", "block"], key=lambda v: labels.order("variant", v))
    assert windows == ["matrix", "key_up", "block", "3", "model", "retrain"]
    rates = sorted(["auto", "0.01", "3e-05", "0.001"], key=lambda v: labels.order("learning_rate", v))
    assert rates == ["3e-05", "0.001", "0.01", "auto"]
    models = sorted(
        ["opt-13b", "llama-15m", "opt-1.3b", "llama-3m", "opt-2.7b"], key=lambda v: labels.order("model", v)
    )
    assert models == ["llama-3m", "llama-15m", "opt-1.3b", "opt-2.7b", "opt-13b"]
    patterns = sorted(["2:4", "60%", "50%"], key=lambda v: labels.order("pattern", v))
    assert patterns == ["50%", "60%", "2:4"]
