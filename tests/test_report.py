"""The HTML report: complete, well-formed, escaped, the same bytes every time, and nothing to load."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
import yaml

from freelunch.__main__ import load
from freelunch.errors import FreelunchError
from freelunch.plan.plan import Plan, resolved, rules
from freelunch.plan.specs import EvaluationSpec, PrunedSpec, ReconstructedSpec, ShardSpec
from freelunch.reporting import FIGURE_NAMES, TABLE_NAMES, claims, graph, legends, rows, runtimes
from freelunch.reporting.report import Report, Run, Source, figure_view, html, table_view
from freelunch.reporting.verdicts import Evidence, verdicts
from freelunch.rulegraph import rule_graph
from freelunch.stages.report import TEMPLATE
from freelunch.stages.report import report as write_report
from pages import Checked

ROOT = Path(__file__).parents[1]
HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(1)>'{{ 7 * 7 }}"
Record = dict[str, Any]


def frame(model: str = "m") -> pd.DataFrame:
    """Two windows, once not recovered, and the dense model."""
    base = {"suite": "s", "model": model, "seed": 3, "calibration": "wiki", "criterion": "wanda", "pattern": "2:4"}
    at = {"metric": "ppl@256", "dataset": "wiki", "split": "test", "length": 256, "stderr": 0.3}
    local: Record = {
        "recovery": "reconstruct",
        "flow": "dense",
        "parametrization": "full",
        "targets": "all",
        "loss": "mse",
    }
    runs: list[Record] = [
        {"run": "dense", "criterion": "dense", "pattern": "dense", "recovery": "none", "value": 14.0},
        {"run": "alone", "recovery": "none", "value": 1.25e6},
        {"run": "halves", **local, "window": "attention_mlp", "value": 30.2},
        {"run": "block", **local, "window": "block", "value": 29.9},
    ]
    return rows.to_frame([base | at | run for run in runs])


def manifest(**changes: Any) -> Record:
    about: Record = {"seconds": 10.0, "peak_gib": 1.5, "device": "EPYC", "threads": 2, "cpus": 4}
    about |= {"finished": "2026-01-02T03:04:05+00:00", "versions": {"torch": "2.13.0", "freelunch": "0.1.0"}}
    return about | changes


def example(model: str = "m", views: bool = True) -> Report:
    data = frame(model)
    jobs = [
        runtimes.job_of("pruned", "pruned-1", manifest(finished="2026-01-01T00:00:00+00:00")),
        runtimes.job_of(
            "reconstructed", "halves-1", manifest(train_seconds=50.0, training_tokens=900, search_tokens=100)
        ),
        runtimes.job_of("evaluation", "halves-2", manifest()),
    ]
    shown = [
        table_view("s", "perplexity", data, ""),
        table_view("s", "window", data, "--configfile a.yaml -- "),
        figure_view("s", "window", data, "", b"<svg/>", b"png"),
    ]
    return Report(
        suite="s", description="two windows", python="3.11.0", seeds=(3,), verdicts=verdicts(Evidence(data, {})),
        views=shown if views else [], graph=graph.svg({"a": 1, "b": 2}, [("a", "b")], "rules"), jobs=jobs,
        runs=[Run("halves", tuple(jobs))], sources=[Source("model", model, "local files", "Apache-2.0")],
        config="suite: s\n",
    )  # fmt: skip


def page(found: Report) -> str:
    return html(found, TEMPLATE.read_text(encoding="utf-8"))


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_has_every_part_in_order() -> None:
    text = page(example())
    parts = ["two windows", "2026-01-02 03:04:05 UTC", "EPYC, 2 of 4 cores", 'id="findings"', 'id="claim-window"',
             'id="tables"', 'id="figures"', 'id="workflow"', 'id="times"', 'id="environment"', "suite: s", "Apache-2.0",
             "Qishi Zhan"]  # fmt: skip
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    found = Checked(text)
    assert found.tags["h1"] == 1 and found.tags["img"] == 1 and found.tags["svg"] == 1
    assert "snakemake --cores all results/s/figures/window.pdf" in text
    assert "snakemake --cores all --configfile a.yaml -- results/s/tables/window.csv" in text
    assert "data:image/svg+xml;base64,PHN2Zy8+" in text
    assert "Claim (arXiv:2510.14444)" in text and "Here: Wanda, 2:4" in text
    assert "<b>29.90</b>" in text and "1.250×10<sup>6</sup>" in text and "± 0.30" in text


def test_names_cannot_inject_anything() -> None:
    found = replace(example(HOSTILE), suite="s", description=HOSTILE, config=HOSTILE,
                    sources=[Source(HOSTILE, HOSTILE, HOSTILE, HOSTILE)])  # fmt: skip
    text = page(found)
    checked = Checked(text)
    assert checked.tags["img"] == 1 and "script" not in checked.tags
    assert checked.text.count("<script>alert(1)</script>") >= 7, "shown as the text that it is"
    assert "{{ 7 * 7 }}" in checked.text, "no text is taken for a template"


def test_the_same_report_is_the_same_bytes_and_others_are_not() -> None:
    assert page(example()) == page(example())
    assert page(example()) != page(example("other"))


def test_a_suite_without_tables_and_figures_has_a_report() -> None:
    text = page(example(views=False))
    checked = Checked(text)
    assert 'id="tables"' not in text and 'id="figures"' not in text and checked.tags["img"] == 0
    bare = replace(example(views=False), jobs=[], runs=[], seeds=(), description="", sources=[])
    assert "unknown" in Checked(page(bare)).text


def test_a_drawing_that_is_too_large_is_embedded_as_png() -> None:
    small = figure_view("s", "window", frame(), "", b"x" * 2**20, b"png")
    large = figure_view("s", "window", frame(), "", b"x" * (2**20 + 1), b"png")
    assert small.image is not None and small.image.startswith("data:image/svg+xml")
    assert large.image == "data:image/png;base64,cG5n"


def test_verdicts_are_told_with_their_rule_and_their_numbers() -> None:
    text = Checked(page(example())).text
    assert "Window: holds partly" in text and "from half a block up worst and best are" in text
    assert "One seed: differences have no error" in text
    assert text.count("not testable here") >= 8


# --- times -----------------------------------------------------------------------------------------------------------


def test_jobs_say_what_their_manifests_do() -> None:
    job = runtimes.job_of("reconstructed", "a", manifest(
        seconds=3.0, train_seconds=50.0, training_tokens=900, search_tokens=100, peak_device_gib=7.0))  # fmt: skip
    assert (job.seconds, job.peak_gib, job.tokens, job.rate) == (50.0, 7.0, 1000, 20.0)
    calibrated = runtimes.job_of("calibration", "b", manifest(tokens={"calibration": 30, "validation": 10}))
    assert calibrated.tokens is None and calibrated.rate is None
    assert runtimes.job_of("evaluation", "c", manifest()).rate is None


def test_totals_add_up() -> None:
    jobs = [
        runtimes.job_of("dense", "a", manifest(seconds=10.0, tokens=100)),
        runtimes.job_of("dense", "b", manifest(seconds=30.0, tokens=300, peak_gib=2.5)),
        runtimes.job_of("evaluation", "c", manifest(seconds=5.0, versions={"torch": "2.12.0"})),
    ]
    dense, evaluation, every = runtimes.totals(jobs)
    assert dense == runtimes.Total("dense", 2, 40.0, 30.0, 2.5, 10.0)
    assert evaluation.rate is None and evaluation.jobs == 1
    assert every == runtimes.Total("all", 3, 45.0, 30.0, 2.5, None)
    assert runtimes.totals([]) == []
    assert runtimes.versions(jobs) == {"freelunch": ["0.1.0"], "torch": ["2.12.0", "2.13.0"]}


# --- the workflow ----------------------------------------------------------------------------------------------------


def test_edges_that_follow_from_others_are_left_out() -> None:
    edges = [("a", "b"), ("b", "c"), ("a", "c"), ("a", "d"), ("c", "d"), ("a", "b")]
    assert graph.reduced(edges) == [("a", "b"), ("b", "c"), ("c", "d")]
    assert graph.depths(["a", "b", "c", "e"], edges[:3]) == {"a": 0, "b": 1, "c": 2, "e": 0}


def test_the_drawing_has_a_box_per_rule_and_no_two_of_them_touch() -> None:
    jobs = {"a<b": 1, "b": 12, "c": 3, "d": 1, "e": 1}
    edges = [("a<b", "b"), ("a<b", "c"), ("b", "d"), ("c", "e"), ("d", "e"), ("a<b", "e")]
    tree = ElementTree.fromstring(graph.svg(jobs, edges, 'a "title"'))
    boxes = [tuple(float(box.attrib[name]) for name in ("x", "y")) for box in tree.iter("rect")]
    texts = [text.text for text in tree.iter("text")]
    assert texts == ["a<b", "1 job", "b", "12 jobs", "c", "3 jobs", "d", "1 job", "e", "1 job"]
    assert len(list(tree.iter("path"))) == 5, "from a<b to e follows"
    for place, (x, y) in enumerate(boxes):
        assert all(abs(x - other[0]) >= 132 or abs(y - other[1]) >= 40 for other in boxes[place + 1 :])
    height = dict(zip(jobs, (y for _, y in boxes), strict=True))
    assert all(height[first] < height[second] for first, second in edges), "lines lead downwards"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return load([ROOT / "config.yaml", ROOT / "tests/tiny.yaml"])


def test_the_graph_of_a_suite_counts_its_jobs(plan: Plan) -> None:
    jobs, edges = rule_graph(plan, "tiny")
    needed = plan.needed("tiny")
    assert jobs["reconstruct"] == sum(isinstance(spec, ReconstructedSpec) for spec in needed) == 6
    assert jobs["evaluate"] == sum(isinstance(spec, EvaluationSpec) for spec in needed) == 15
    assert jobs["prune"] == sum(isinstance(spec, PrunedSpec) for spec in needed)
    assert jobs["table"] == 2 and jobs["figure"] == 3 and jobs["collect"] == jobs["report"] == 1
    assert "fetch" not in jobs and "shard" not in jobs and "export" not in jobs
    assert jobs.keys() <= set(rules()) and {name for edge in edges for name in edge} <= jobs.keys()
    kept = graph.reduced(edges)
    assert ("prune", "reconstruct") in kept and ("evaluate", "collect") in kept and ("model", "evaluate") not in kept
    ElementTree.fromstring(graph.svg(jobs, edges, "tiny"))
    demo, edges = rule_graph(plan, "demo")
    assert demo["fetch"] == 2 and ("fetch", "model") in edges and ("fetch", "data") in edges


def test_the_config_is_resolved_to_what_runs_share_and_what_tells_them_apart(plan: Plan) -> None:
    found = yaml.safe_load(text := resolved(plan, "tiny"))
    assert found["shared"]["batch_size"] == 4 and found["shared"]["schedule"] == "linear", "given, and a default"
    runs = [run for run in plan.runs["tiny"] if run.axes is not None]
    assert list(found["runs"]) == [run.name for run in runs]
    for run in runs:
        assert run.axes is not None
        assert found["shared"] | found["runs"][run.name] == run.axes.model_dump(mode="json")
    assert not found["shared"].keys() & found["runs"][runs[0].name].keys()
    assert "stream_tokens" not in text, "how jobs run is no part of it"


# --- captions and sources --------------------------------------------------------------------------------------------


def test_captions_belong_to_views_that_there_are() -> None:
    assert legends.TABLES.keys() == set(TABLE_NAMES) and legends.FIGURES.keys() == set(FIGURE_NAMES)
    for kind, names in (("table", TABLE_NAMES), ("figure", FIGURE_NAMES)):
        for name in names:
            assert all(len(text) > 40 for text in legends.legend(kind, name)), name


def test_papers_are_cited_as_in_the_citation_file() -> None:
    known = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["references"]
    assert len(known) == len(claims.PAPERS)
    for paper, text in zip(known, claims.PAPERS.values(), strict=True):
        assert paper["title"] in text and str(paper["year"]) in text and paper["identifiers"][0]["value"] in text
        assert all(f"{author['given-names']} {author['family-names']}" in text for author in paper["authors"])


# --- the stage -------------------------------------------------------------------------------------------------------


def test_the_stage_reads_results_and_writes_the_page(plan: Plan, tmp_path: Path) -> None:
    for spec in plan.needed("tiny"):
        assert not isinstance(spec, ShardSpec)
        about = {"key": spec.key, "files": {}, "parameters": 1000, "licence": ""} | manifest()
        (tmp_path / spec.folder).mkdir(parents=True)
        (tmp_path / spec.manifest).write_text(json.dumps(about), encoding="utf-8")
    folder = tmp_path / "results/tiny"
    data = frame("tiny").assign(suite="tiny")
    losses = {"metric": "validation_loss", "position": "0", "split": "validation", "dataset": None, "length": None}
    halves = data[data["window"] == "block"].to_dict("records")[0] | losses
    curve = [halves | {"step": step, "value": value} for step, value in ((0, 1.0), (4, 0.5))]
    best = halves | {"metric": "best_validation_loss", "step": 4, "value": 0.5}
    records: list[Any] = [*data.to_dict("records"), *curve, best]
    rows.write(rows.to_frame(records), folder / "rows.parquet")
    for name in plan.config.suites["tiny"].figures:
        for kind in ("svg", "png"):
            (folder / f"figures/{name}.{kind}").parent.mkdir(exist_ok=True)
            (folder / f"figures/{name}.{kind}").write_bytes(f"{name}.{kind}".encode())
    targets = [folder / "report.html", folder / "again.html"]
    for target in targets:
        write_report(plan, "tiny", tmp_path, ["tests/tiny.yaml"], target)
    assert targets[0].read_bytes() == targets[1].read_bytes()
    text = targets[0].read_text(encoding="utf-8")
    checked = Checked(text)
    assert checked.tags["img"] == 3 and checked.tags["caption"] == 2
    assert "from data to a report on a random model of four blocks" in text and "tests/data/documents.jsonl" in text
    assert f"By run ({len(plan.runs['tiny'])})" in text and all(run.name in text for run in plan.runs["tiny"])
    assert "snakemake --cores all --configfile tests/tiny.yaml -- results/tiny/figures/gain.pdf" in text

    shared = next(spec for spec in plan.needed("tiny") if spec.stage == "dense")
    (tmp_path / shared.manifest).unlink()
    write_report(plan, "tiny", tmp_path, [], targets[1])
    assert '<th scope="row">dense</th>' in text and '<th scope="row">dense</th>' not in targets[1].read_text()
    (tmp_path / plan.runs["tiny"][0].evaluation.base.manifest).unlink()
    with pytest.raises(FreelunchError, match=r"cannot read .*models"):
        write_report(plan, "tiny", tmp_path, [], targets[1])
