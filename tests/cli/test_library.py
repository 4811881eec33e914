"""Pruning without a config: results of the pipeline's stages, taken again; the README's example as it is."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from freelunch import FreelunchError, Pruned, perplexity, prune, reconstruct, save
from freelunch.plan.spec import parse_spec
from freelunch.reference import PAGES
from freelunch.results.artifacts import sealed
from freelunch.stages import code_of, function_of
from freelunch.stages import dense as dense_stage
from stage_runs import ROOT, need, tiny_plan

DOCUMENTS = [json.loads(line)["text"] for line in (ROOT / "tests/data/documents.jsonl").open(encoding="utf-8")]
TEXTS, HELD_OUT = DOCUMENTS[:180], DOCUMENTS[180:]
SMALL: dict[str, Any] = {"sequences": 8, "length": 64, "execution": {"device": "cpu", "stream_tokens": 128}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer, as a directory of its own."""
    root = tmp_path_factory.mktemp("dense")
    spec = next(iter(tiny_plan().stage("models").values()))
    return need(spec, root).folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def by_hand(folder: Path, texts: list[str], length: int) -> float:
    """Perplexity by transformers alone, in windows that do not overlap."""
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(folder)("\n\n".join(texts), verbose=False, return_tensors="pt")["input_ids"]
    windows = tokens[0, : tokens.shape[1] // length * length].reshape(-1, length)
    with torch.no_grad():
        losses = [network(row[None], labels=row[None]).loss.item() for row in windows]
    return math.exp(sum(losses) / len(losses))


def test_importing_the_package_imports_no_torch() -> None:
    code = (
        "import sys, freelunch; from freelunch.pruning.method import parse_method; from freelunch import prune, save;"
        "sys.exit('torch' in sys.modules or not callable(prune) or not callable(save))"
    )
    environment = {"PYTHONPATH": str(ROOT / "workflow")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_a_saved_network_has_zeros_and_the_perplexity_that_was_measured(
    model: Path, work: Path, tmp_path: Path
) -> None:
    pruned = prune(model, TEXTS, pattern="2:4", work=work, **SMALL)
    repaired = reconstruct(pruned, window="block", learning_rate=1e-3, batch_size=4)
    assert pruned.folder != repaired.folder and repaired.manifest["stage"] == "reconstructed"
    windows = repaired.manifest["windows"]
    assert len(windows) == 4 and all(window["best_loss"] <= window["losses"][0] for window in windows)
    saved = save(repaired, tmp_path / "saved")
    for name, tensor in AutoModelForCausalLM.from_pretrained(saved).named_parameters():
        if "proj" in name:
            assert ((tensor.reshape(-1, 4) != 0).sum(1) == 2).all(), name
    measured = perplexity(repaired, HELD_OUT, length=64)
    assert measured == pytest.approx(by_hand(saved, HELD_OUT, 64), rel=2e-2)
    assert perplexity(model, HELD_OUT, length=64, work=work) == pytest.approx(by_hand(model, HELD_OUT, 64), rel=2e-2)
    assert measured != perplexity(pruned, HELD_OUT, length=64)
    with pytest.raises(FreelunchError, match="save to a new or an empty directory"):
        save(repaired, tmp_path / "saved")


def test_what_is_there_is_taken_and_what_is_stale_is_made_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = prune(model, TEXTS, work=tmp_path, **SMALL)
    before = (one.folder / "manifest.json").stat().st_mtime_ns
    calls = []
    real = dense_stage.make
    monkeypatch.setattr(dense_stage, "make", lambda *given, **named: (calls.append(1), real(*given, **named)))
    again = prune(model, TEXTS, work=tmp_path, **SMALL)
    other = prune(model, TEXTS, criterion="magnitude", work=tmp_path, **SMALL)
    assert not calls and again.folder == one.folder != other.folder
    assert (one.folder / "manifest.json").stat().st_mtime_ns == before
    prune(model, TEXTS[1:], work=tmp_path, **SMALL)
    assert calls == [1]
    (manifest,) = (tmp_path / "results/calibration").glob(f"*{key(one)}*/manifest.json")
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(sealed(content | {"inputs": dict.fromkeys(content["inputs"], "0")})))
    prune(model, TEXTS, work=tmp_path, **SMALL)
    assert calls == [1] and json.loads(manifest.read_text())["inputs"] == content["inputs"]  # the same tokens again


def key(pruned: Pruned) -> str:
    return parse_spec(pruned.manifest["spec"]["dense"]["calibration"]).key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"criterion": "wander"}, "wander"),
        ({"pattern": "3:2"}, "3:2"),
        ({"learning_rat": 1}, "learning_rate"),
        ({"length": 4096}, "4,?096"),
        ({"validation": 1.0}, "validation"),
        ({"work": None, "texts": "one text"}, "a list of strings"),
        ({"texts": []}, "there are none"),
        ({"model": "nowhere"}, "is no model directory"),
    ],
)
def test_what_is_not_possible_is_one_line(changes: dict[str, Any], message: str, model: Path, tmp_path: Path) -> None:
    given = {"model": model, "texts": TEXTS} | SMALL | changes | {"work": tmp_path}
    with pytest.raises(FreelunchError, match=message) as caught:
        prune(given.pop("model"), given.pop("texts"), **given)
    assert "\n" not in str(caught.value)


def test_the_reference_is_that_of_the_docstrings() -> None:
    assert (ROOT / "docs/api.md").read_text(encoding="utf-8") == PAGES["api"](), "run `make reference`"


def test_every_stage_has_a_function_and_a_hash_of_its_code() -> None:
    for spec in tiny_plan().specs.values():
        assert callable(function_of(spec)) and re.fullmatch("[0-9a-f]{16}", code_of(spec))


def test_the_example_in_the_readme_runs_as_it_is(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## From Python")[1]
    (code,) = re.findall(r"```python\n(.*?)```", section.split("\n## ")[0], re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(model)
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "model-2of4/config.json").is_file()
