"""The script for GPUs: what fails, hangs or is missing shows in its table, and the rest is there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as script
from benchmarks.gpu import checks, pipeline
from benchmarks.gpu.carry import PROJECT, closure
from benchmarks.gpu.page import NEVER, page

JUNIT = """<testsuites><testsuite>
<testcase name="test_one[a]" time="1.5"/>
<testcase name="test_one[b]" time="0.5"><failure message="1 != 2&#10;more"/></testcase>
<testcase name="test_two" time="0.1"><skipped message="no"/></testcase>
</testsuite></testsuites>"""


def test_failures_of_tests_are_counted_and_told(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(JUNIT)
    one, two = checks.outcomes(tmp_path / "junit.xml")
    assert (one["passed"], one["seconds"], one["error"]) == (1, 2.0, "1 failed")
    assert (two["passed"], two["skipped"]) == (0, 1) and "error" not in two
    assert any("b: 1 != 2" in line for line in checks.lines({"rows": [one, two]}))


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise ValueError('no such thing')", "ValueError: no such thing"),
        ("keep({'rows': [{'test': 'first'}]}); import time; time.sleep(60)", "was killed after 12 s"),
        ("import os; os._exit(3)", "ended with status 3"),
    ],
)
def test_a_part_that_fails_leaves_the_others(
    code: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = f"def measure(device, smallest, seconds, keep):\n    {code}\n"
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys, types\nmodule = types.ModuleType('benchmarks.gpu.sparse')\nexec({body!r}, module.__dict__)\n"
        "sys.modules['benchmarks.gpu.sparse'] = module\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{PROJECT}:{PROJECT / 'workflow'}")
    part = script._part("sparse", "cpu", True, tmp_path, tmp_path, 12 if "sleep" in code else 60)
    assert told in part["error"] and script.errors(part) == 1
    assert part["rows"] == ([{"test": "first"}] if "sleep" in code else [])


def test_the_page_says_what_ran_and_that_nothing_did() -> None:
    assert (PROJECT / "docs/gpu.md").read_text(encoding="utf-8") == page(None)
    rows = [{"run": "dense", "perplexity": 12.5, "seconds": 1.0, "cpu perplexity": None}]
    result = {
        "machine": {"device": "cuda", "card": "A card", "card GiB": 80, "driver": "1.2", "cuda": "13", "cpus": 16,
                    "versions": {"torch": "2.11"}},
        "smallest": False, "seconds": 3.0, "parts": {"pipeline": {"rows": rows, "model": "m", "seconds": 3.0}},
    }  # fmt: skip
    text = page(result)
    assert all(part in text for part in ("A card", "driver 1.2", "torch 2.11", "12.50", "Not run: checks, blocks"))
    assert NEVER not in text


def test_perplexities_that_do_not_agree_are_an_error() -> None:
    for value, wrong in ((10.01, False), (11.0, True)):
        row = {"run": "dense", "perplexity": value, "cpu perplexity": 10.0}
        pipeline._compare(row, "float32")
        assert ("error" in row) == wrong


def test_what_a_package_needs_is_followed_and_what_is_there_is_not() -> None:
    names = closure(("transformers",))
    assert {"tokenizers", "huggingface-hub", "httpx2", "idna"} <= names  # the last two are below the second
    assert "networkx" in closure(("sympy", "networkx")) and "networkx" not in closure(("torch",))


def test_unknown_parts_are_refused() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "nothing"]
    found = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert found.returncode == 2 and "no part 'nothing'" in found.stderr
    assert json.dumps(list(script.SECONDS)) == '["checks", "pipeline", "blocks", "cache", "sparse"]'
