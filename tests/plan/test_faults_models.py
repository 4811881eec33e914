"""Model directories that are made to harm: code of their own, files elsewhere, configs and tokenizers of anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from freelunch.errors import FreelunchError
from freelunch.inputs.models import checked_config, load_tokenizer, weight_files
from freelunch.plan.spec import Spec
from freelunch.runner import Runner
from one_of_each import SHARDED, SPECS
from stage_runs import need, tiny_config, tiny_plan


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "[" * 100_000),
        ("config.json", "[]"),
        ("config.json", '{"model_type": "llama", "hidden_size": "many"}'),
        ("config.json", '{"model_type": "../../llama"}'),
        ("config.json", '{"model_type": ["llama"]}'),
        ("config.json", '{"model_type": "llama", "auto_map": {"AutoConfig": "evil.Config"}}'),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["evil.Tokenizer", null]}}'),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../../../etc/passwd.safetensors"}}'),
        ("model.safetensors.index.json", '{"weight_map": {"a": 3}}'),
        ("model.safetensors.index.json", '{"weight_map": ["a"]}'),
        ("model.safetensors.index.json", "[]"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -1}, "merges": [["a", "b"]]}}'),
    ],
)
def test_a_model_directory_that_is_made_to_harm_is_one_line(name: str, content: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / name).write_text(content)
    with pytest.raises(FreelunchError, match=str(folder)) as caught:
        checked_config(folder)
        weight_files(folder)
        load_tokenizer(folder)
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


def test_a_directory_without_a_config_is_not_offered_for_deletion(tmp_path: Path) -> None:
    with pytest.raises(FreelunchError) as caught:
        checked_config(tmp_path)
    assert "delete" not in str(caught.value)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A model directory as someone gives it away."""
    need(SPECS["models"], tmp_path / "made")
    folder = tmp_path / "published"
    folder.mkdir()
    for path in (tmp_path / "made" / SPECS["models"].folder).iterdir():
        if path.name != "manifest.json":
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def dense_of(folder: Path) -> Spec:
    raw = tiny_config()
    raw["models"]["tiny"] = {"path": str(folder), "dtype": "float32"}
    raw["suites"]["tiny"]["defaults"] |= {"sequences": 5, "validation_sequences": 2, "length": 24}
    raw["suites"]["tiny"]["runs"] = [{"criterion": "wanda", "pattern": "50%", "recovery": "none"}]
    raw["suites"]["tiny"]["evaluate"] = [{"data": "documents", "length": 24, "sequences": 4, "splits": ["test"]}]
    return next(iter(tiny_plan(raw).stage("dense").values()))


Q = "model.layers.1.self_attn.q_proj.weight"
"""The tensor that is changed."""
WEIGHTS: dict[str, Any] = {
    f"no tensor {Q} in ": lambda tensor: None,
    rf"tensor {Q} is \[3, 5\], its config says": lambda tensor: torch.ones(3, 5),
    f"{Q} is I8, which is quantised; use": lambda tensor: torch.ones_like(tensor, dtype=torch.int8),
    "hidden states contain NaN or infinity": lambda tensor: torch.full_like(tensor, float("nan")),
}


@pytest.mark.parametrize(("message", "change"), WEIGHTS.items(), ids=["missing", "shape", "integers", "NaN"])
def test_weights_that_do_not_fit_are_one_line(message: str, change: Any, published: Path, tmp_path: Path) -> None:
    tensors = load_file(published / "model.safetensors")
    changed = change(tensors.pop(Q))
    save_file(tensors | ({} if changed is None else {Q: changed}), published / "model.safetensors")
    with pytest.raises(FreelunchError, match=message) as caught:
        Runner(tmp_path, SHARDED, 1.0).need(dense_of(published))
    assert "\n" not in str(caught.value)


def test_code_beside_a_model_is_neither_copied_nor_run(published: Path, tmp_path: Path) -> None:
    for name in ("modeling_tiny.py", "tokenization_tiny.py", "setup.py"):
        (published / name).write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    spec = dense_of(published)
    Runner(tmp_path, SHARDED, 1.0).need(spec)
    assert not (tmp_path / "ran").exists() and not list((tmp_path / "results").rglob("*.py"))
