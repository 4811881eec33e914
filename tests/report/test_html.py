"""The HTML report: it leads with the answer, is well-formed and escaped, and loads nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from made import Record, Suite, criteria, everything, windows

from freelunch.__main__ import load
from freelunch.plan.plan import Plan, resolved
from freelunch.plan.specs import ShardSpec
from freelunch.report import html, rows, text
from freelunch.report.html import Report, Source, answer, compressed, duration, figure_part, job, table_part
from freelunch.report.verdicts import verdicts
from freelunch.stages.report import report as write_report
from pages import Checked

ROOT = Path(__file__).parents[2]
HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(1)>'{{ 7 * 7 }}"


def suite_of(model: str = "m") -> Suite:
    suite = Suite()
    suite.dense["model"] = model
    suite.records = [record | {"model": model} for record in suite.records]
    suite.add(1.25e6, model=model)
    suite.local(30.2, 40.0, model=model)
    suite.local(29.9, 41.0, model=model, window="block")
    return suite


def manifest(**changes: Any) -> Record:
    about: Record = {"seconds": 10.0, "peak_gib": 1.5, "device": "EPYC", "threads": 2, "cpus": 4}
    about |= {"finished": "2026-01-02T03:04:05+00:00", "versions": {"torch": "2.13.0", "freelunch": "0.1.0"}}
    return about | changes


def example(model: str = "m", **changes: Any) -> Report:
    frame = suite_of(model).frame
    parts = [table_part("perplexity", frame), table_part("window", frame),
             figure_part("window", frame, b"<svg/>", b"png")]  # fmt: skip
    jobs = [job("pruned", manifest(finished="2026-01-01T00:00:00+00:00")), job("pruned", manifest(peak_device_gib=9.0)),
            job("reconstructed", manifest(train_seconds=50.0, training_tokens=900, search_tokens=100))]  # fmt: skip
    sources = [Source("model", model, "local files", "Apache-2.0")]
    options = "--configfile a.yaml -- "
    found = Report("s", "two windows", frame, parts, verdicts(frame), jobs, sources, "suite: s\n", options)
    return replace(found, **changes)


def test_the_page_leads_with_the_answer() -> None:
    page = html.html(example())
    parts = ["two windows", "m, pruned by Wanda at 2:4.", 'id="answer"', 'id="figure-window"', 'id="table-perplexity"',
             'id="views"', 'id="table-window"', 'id="verdicts"', 'id="claim-window"', "Not testable here", 'id="work"',
             "2026-01-02 03:04", "EPYC, 2 of 4 cores", "Apache-2.0", "Qishi Zhan", "suite: s"]  # fmt: skip
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    checked = Checked(page)
    assert checked.tags["h1"] == checked.tags["img"] == 1 and "data:image/svg+xml;base64,PHN2Zy8+" in page
    assert "snakemake --cores all --configfile a.yaml -- results/s/figures/window.pdf" in page
    assert "<b>29.90 ± 0.30</b>" in page and "1.250×10⁶" in page and "prefers-color-scheme" not in page


def test_the_answer_is_dense_pruned_and_the_recovery_that_validation_chooses() -> None:
    found = answer(suite_of().frame)
    assert found is not None
    assert found.frame.values.tolist() == [["m", "Wanda", "2:4", "14.00", "1.250×10⁶", "30.20",
                                            "Reconstruction, Attention / MLP"]]  # fmt: skip
    without = answer(rows.to_frame([r for r in suite_of().records if r["split"] == "test"]))
    assert without is not None and without.frame["Recovered"].tolist() == ["29.90 to 30.20"]
    alone = Suite()
    alone.add(130.0)
    alone.add(90.0, criterion="ria")
    pruned = answer(alone.frame)
    assert pruned is not None and pruned.frame.values.tolist() == [
        ["m", "Wanda", "2:4", "14.00", "130.0"], ["m", "RIA", "2:4", "14.00", "90.00"]
    ]  # fmt: skip
    assert answer(Suite().frame) is None and compressed(Suite().frame) == "Nothing was pruned."
    seeds = criteria({"wanda": (40.0, 30.0)})
    seeds.add(50.0, seed=1)  # not recovered with that seed
    both = answer(seeds.frame)
    assert answer(everything((0,)).frame) is not None, "counts are missing in some runs"
    assert both is not None and both.frame["Pruned"].tolist() == ["40.00"]


def test_names_cannot_inject_anything() -> None:
    hostile = example(HOSTILE, description=HOSTILE, config=HOSTILE, sources=[Source(*[HOSTILE] * 4)])
    checked = Checked(html.html(hostile))
    assert checked.tags["img"] == 1 and "script" not in checked.tags
    assert checked.text.count("<script>alert(1)</script>") >= 7, "shown as the text that it is"
    assert "{{ 7 * 7 }}" in checked.text, "no text is taken for a template"


def test_the_same_report_is_the_same_bytes_and_a_bare_one_is_a_page() -> None:
    assert html.html(example()) == html.html(example()) != html.html(example("other"))
    bare = Checked(html.html(example(parts=[], jobs=[], sources=[], verdicts=[], description="")))
    assert "unknown" in bare.text and bare.tags["img"] == 0


def test_a_drawing_that_is_too_large_is_embedded_as_png() -> None:
    frame = suite_of().frame
    small = figure_part("window", frame, b"x" * 2**20, b"png").image
    large = figure_part("window", frame, b"x" * (2**20 + 1), b"png").image
    assert small is not None and small.startswith("data:image/svg+xml") and large == "data:image/png;base64,cG5n"


def test_work_is_told_by_stage() -> None:
    assert html.work(example().jobs).frame.values.tolist() == [
        ["pruned", "2", "20 s", "10 s", "9.00", "–"],
        ["reconstructed", "1", "50 s", "50 s", "1.50", "20"],
        ["all", "3", "70 s", "50 s", "9.00", ""],
    ]
    assert [duration(each) for each in (0.42, 75, 720, 11_160)] == ["0.42 s", "75 s", "12 min", "3.1 h"]


def test_papers_are_cited_as_in_the_citation_file() -> None:
    known = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["references"]
    for paper, words in zip(known, text.TEXT["papers"].values(), strict=True):
        assert paper["title"] in words and str(paper["year"]) in words and paper["identifiers"][0]["value"] in words
        assert all(f"{author['given-names']} {author['family-names']}" in words for author in paper["authors"])


# --- the stage -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan() -> Plan:
    return load([ROOT / "config.yaml", ROOT / "tests/tiny.yaml"])


def test_the_config_is_resolved_to_what_runs_share_and_what_tells_them_apart(plan: Plan) -> None:
    text = resolved(plan, "tiny")
    found = yaml.safe_load(text)
    assert found["shared"]["batch_size"] == 4 and found["shared"]["schedule"] == "linear", "given, and a default"
    runs = [run for run in plan.runs["tiny"] if run.axes is not None]
    assert list(found["runs"]) == [run.name for run in runs]
    for run in runs:
        assert run.axes is not None
        assert found["shared"] | found["runs"][run.name] == run.axes.model_dump(mode="json")
    assert not found["shared"].keys() & found["runs"][runs[0].name].keys()
    assert "stream_tokens" not in text, "how jobs run is no part of it"


def test_the_stage_reads_results_and_writes_the_page(plan: Plan, tmp_path: Path) -> None:
    for spec in plan.needed("tiny"):
        assert not isinstance(spec, ShardSpec)
        about = {"key": spec.key, "files": {}, "parameters": 1000, "licence": ""} | manifest()
        (tmp_path / spec.folder).mkdir(parents=True)
        (tmp_path / spec.manifest).write_text(json.dumps(about), encoding="utf-8")
    folder = tmp_path / "results/tiny"
    suite = windows()
    suite.add(130.0)
    rows.write(rows.to_frame([record | {"suite": "tiny"} for record in suite.records]), folder / "rows.parquet")
    for name in plan.config.suites["tiny"].figures:
        for kind in ("svg", "png"):
            (folder / f"figures/{name}.{kind}").parent.mkdir(exist_ok=True)
            (folder / f"figures/{name}.{kind}").write_bytes(f"{name}.{kind}".encode())
    targets = [folder / "report.html", folder / "again.html"]
    for target in targets:
        write_report(plan, "tiny", tmp_path, ["tests/tiny.yaml"], target)
    assert targets[0].read_bytes() == targets[1].read_bytes()
    page = targets[0].read_text(encoding="utf-8")
    assert Checked(page).tags["img"] == 3
    assert "From data to a report on a random model of four blocks".lower() in page.lower()
    assert "tests/data/documents.jsonl" in page
    assert "snakemake --cores all --configfile tests/tiny.yaml -- results/tiny/figures/gain.pdf" in page

    shared = next(spec for spec in plan.needed("tiny") if spec.stage == "dense")
    (tmp_path / shared.manifest).unlink()
    write_report(plan, "tiny", tmp_path, [], targets[1])
    assert '<th scope="row">dense</th>' in page and '<th scope="row">dense</th>' not in targets[1].read_text()
