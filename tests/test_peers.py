"""The comparison with llm-compressor, as far as it goes without its environment."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import peers
from benchmarks.peers import CASES, SCRIPT, Result, add_tokenizer, check_changed, command, table
from benchmarks.pruning import EIGHT_B
from benchmarks.runs import alone, own_peak, random_dense, the_demo
from freelunch.errors import FreelunchError
from freelunch.pruning.patterns import parse_pattern

ROOT = Path(__file__).parents[1]


def test_the_script_gets_the_weights_the_tokens_and_the_pattern() -> None:
    demo, *_ = the_demo()
    calibration = random_dense(demo, EIGHT_B, 1, Path("root")).calibration
    masks = {}
    for criterion, pattern in CASES:
        python, isolated, script, *given = command(calibration, criterion, pattern, "float32", Path("out"))
        assert (python, isolated, script) == (str(peers.PYTHON), "-P", str(SCRIPT)) and SCRIPT.is_file()
        model, tokens, wanted, sparsity, masks[criterion, pattern], dtype, output = given
        assert Path(model) == peers.ROOT / calibration.model.folder
        assert Path(tokens) == peers.ROOT / calibration.folder / "tokens.safetensors"
        assert (wanted, dtype, output) == (criterion, "float32", "out")
        assert float(sparsity) == parse_pattern(pattern).sparsity
    assert set(masks.values()) == {"0:0", "2:4"}
    assert all((mask == "2:4") == (pattern == "2:4") for (_, pattern), mask in masks.items())


def test_the_script_needs_nothing_of_this_package() -> None:
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert all(node.level == 0 and not (node.module or "").startswith("freelunch") for node in imports)


def test_results_stand_in_one_table() -> None:
    found = [
        Result("wanda", "2:4", "freelunch", "sparse", 12.34, 1.2345, 45.678),
        Result("wanda", "2:4", "llm-compressor", "sparse", 99.5, 2.0, 45.0),
    ]
    assert table(found).splitlines() == [
        "| criterion | pattern | who | inputs | seconds | peak GiB | perplexity |",
        "| --- | --- | --- | --- | ---: | ---: | ---: |",
        "| wanda | 2:4 | freelunch | sparse | 12 | 1.23 | 45.68 |",
        "| wanda | 2:4 | llm-compressor | sparse | 100 | 2.00 | 45.00 |",
    ]


def test_without_its_environment_it_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FreelunchError, match="make bench-peers"):
        peers.main()


def test_what_the_script_says_is_its_last_line_and_a_failure_is_told() -> None:
    told = "import json; print('a log'); print(json.dumps({'seconds': 1.5}))"
    assert peers._told([sys.executable, "-c", told]) == {"seconds": 1.5}
    with pytest.raises(FreelunchError, match=r"llm-compressor failed: .*no such thing"):
        peers._told([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_its_packages_are_pinned_exactly_and_by_nothing_but_their_names() -> None:
    lines = (ROOT / "requirements-peers.lock").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(len(pin.split("==")) == 2 and "+" not in pin and "/" not in pin for pin in pins)
    assert any(pin.startswith("llmcompressor==") for pin in pins)


def test_the_peak_of_a_small_process_is_not_that_of_the_large_one_that_starts_it() -> None:
    large = bytearray(b"x") * 2**29
    assert own_peak() > 0.5 and len(large) == 2**29
    assert alone(own_peak) < 0.5


def test_a_pruned_model_gets_the_tokenizer_and_keeps_its_own_config(tmp_path: Path) -> None:
    dense, pruned = tmp_path / "dense", tmp_path / "pruned"
    for folder, names in ((dense, ("config.json", "tokenizer.json", "model.safetensors")), (pruned, ("config.json",))):
        folder.mkdir()
        for name in names:
            (folder / name).write_text(f'"{folder.name}"')
    add_tokenizer(dense, pruned)
    found = {path.name: path.read_text() for path in pruned.iterdir()}
    assert found == {"config.json": '"pruned"', "tokenizer.json": '"dense"'}


def test_an_embedding_that_was_pruned_too_is_named(tmp_path: Path) -> None:
    for folder in ("dense", "theirs", "ours"):
        (tmp_path / folder).mkdir()
    weights = {"embedding": torch.ones(4, 4), "matrix": torch.ones(4, 4)}
    save_file(weights, tmp_path / "dense" / "model.safetensors")
    save_file({"matrix": torch.zeros(4, 1, dtype=torch.uint8)}, tmp_path / "ours" / "masks-000.safetensors")
    folders = [tmp_path / name for name in ("dense", "theirs", "ours")]
    save_file(weights | {"matrix": torch.zeros(4, 4)}, tmp_path / "theirs" / "model.safetensors")
    check_changed(*folders)
    save_file({name: torch.zeros(4, 4) for name in weights}, tmp_path / "theirs" / "model.safetensors")
    with pytest.raises(FreelunchError, match=r"^embedding: changed by llm-compressor alone"):
        check_changed(*folders)
    save_file(weights, tmp_path / "theirs" / "model.safetensors")
    with pytest.raises(FreelunchError, match=r"^matrix: masked alone"):
        check_changed(*folders)
