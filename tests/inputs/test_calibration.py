"""Calibration crops: exactly as many tokens as asked for, from where they say, the same for the same seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_prepare import random_source

from freelunch.errors import FreelunchError
from freelunch.inputs.calibration import Crops, sample
from freelunch.inputs.documents import Document
from freelunch.inputs.models import byte_tokenizer
from freelunch.plan.config import DataConfig, ExecutionConfig
from freelunch.plan.specs import CalibrationSpec, DataSpec, ModelSpec
from freelunch.results.artifacts import Artifact
from freelunch.results.stage import Stage
from freelunch.stages.calibration import make as calibrate
from freelunch.stages.data import make as prepare_data
from freelunch.stages.models import make as prepare_model

TOKENIZER = byte_tokenizer()
DOCUMENTS = [Document(f"d{number}", f"{number:02d}" * (number + 1)) for number in range(40)]


def crops(**changes: Any) -> Crops:
    options: dict[str, Any] = {"sequences": 12, "length": 20, "sampling": "document", "seed": 1, "separator": "\n"}
    return sample(DOCUMENTS, TOKENIZER, **options | changes)


def test_document_crops_lie_within_their_document() -> None:
    drawn = crops(sequences=300, length=30)
    texts = dict(DOCUMENTS)
    assert drawn.tokens.shape == (300, 30) and drawn.tokens.dtype == torch.int32
    for tokens, (name,) in zip(drawn.tokens, drawn.documents, strict=True):
        assert TOKENIZER.decode(tokens) in texts[name] and len(texts[name]) > 30
    # with replacement, and every document that is long enough gets its turn
    assert {name for (name,) in drawn.documents} == {name for name, text in texts.items() if len(text) > 30}


def test_every_start_is_possible() -> None:
    text = "abcdef"
    drawn = sample([Document("a", text)], TOKENIZER, sequences=100, length=4, sampling="document", seed=0)
    assert {TOKENIZER.decode(tokens) for tokens in drawn.tokens} == {"abcd", "bcde", "cdef"}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(2, 90), st.integers(0, 2**31 - 1))
def test_packed_crops_are_consecutive_and_use_no_token_twice(sequences: int, length: int, seed: int) -> None:
    drawn = crops(sequences=sequences, length=length, sampling="packed", seed=seed)
    assert drawn.tokens.shape == (sequences, length)
    order = list(dict.fromkeys(name for names in drawn.documents for name in names))
    joined = "".join(dict(DOCUMENTS)[name] + "\n" for name in order)
    assert joined.startswith(TOKENIZER.decode(drawn.tokens.flatten()))
    for tokens, names in zip(drawn.tokens, drawn.documents, strict=True):
        pieces = TOKENIZER.decode(tokens).removesuffix("\n").removeprefix("\n").split("\n")
        assert len(pieces) <= len(names)
    # no document is listed that gives no token
    assert len(joined) - len(dict(DOCUMENTS)[order[-1]] + "\n") < sequences * length


@pytest.mark.parametrize("sampling", ["document", "packed"])
def test_the_seed_decides(sampling: str) -> None:
    torch.manual_seed(5)
    first = crops(sampling=sampling)
    torch.manual_seed(6)
    assert torch.equal(first.tokens, crops(sampling=sampling).tokens)
    assert not torch.equal(first.tokens, crops(sampling=sampling, seed=2).tokens)
    # more sequences go on where fewer stop
    assert torch.equal(first.tokens, crops(sampling=sampling, sequences=20).tokens[:12])


def test_special_tokens_are_the_tokenizers_own() -> None:
    class Starting:
        """Adds a first token, unless told not to."""

        def __call__(self, text: str, add_special_tokens: bool, verbose: bool) -> dict[str, list[int]]:
            return {"input_ids": [999] * add_special_tokens + [ord(symbol) for symbol in text]}

    only = [Document("a", "abcd")]
    drawn = sample(only, Starting(), sequences=50, length=4, sampling="document", seed=0)
    assert {tuple(tokens) for tokens in drawn.tokens.tolist()} == {(999, 97, 98, 99), (97, 98, 99, 100)}
    packed = sample(only, Starting(), sequences=1, length=4, sampling="packed", seed=0)
    assert packed.tokens.tolist() == [[97, 98, 99, 100]]


def test_documents_that_are_too_short() -> None:
    with pytest.raises(FreelunchError, match=r"no document of c4 has more than 80 tokens \(the longest has 80\)"):
        crops(length=80, name="c4")
    with pytest.raises(FreelunchError, match=r"c4 has 1680 tokens, 17 sequences of 100 need 1700"):
        crops(length=100, sequences=17, sampling="packed", name="c4")
    assert crops(length=105, sequences=16, sampling="packed").tokens.shape == (16, 105)
    with pytest.raises(FreelunchError, match="c4 has no documents"):
        sample([], TOKENIZER, sequences=1, length=2, sampling="packed", seed=0, name="c4")


def run(root: Path, splits: dict[str, float], **changes: Any) -> Artifact:
    lines = "".join(json.dumps({"id": name, "text": text * 3}) + "\n" for name, text in DOCUMENTS)
    (root / "texts.jsonl").write_text(lines)
    model = ModelSpec(model="tiny", source=random_source())
    data = DataSpec(data="texts", source=DataConfig(path="texts.jsonl", splits=splits, identifier="id"))  # type: ignore[arg-type]
    options: dict[str, Any] = {
        "sequences": 6,
        "validation_sequences": 3,
        "length": 16,
        "sampling": "document",
        "seed": 4,
    }
    spec = CalibrationSpec(model=model, data=data, **options | changes)
    for stage, does in ((model, prepare_model), (data, prepare_data), (spec, calibrate)):
        does(Stage(stage, root=root, execution=ExecutionConfig(), code="x"))  # type: ignore[operator]
    return Artifact(root / spec.folder, spec)


def test_the_stage_writes_both_sets_from_their_own_splits(tmp_path: Path) -> None:
    artifact = run(tmp_path, {"calibration": 0.5, "validation": 0.5})
    tokens = load_file(artifact.file("tokens.safetensors"))
    assert {name: (tuple(value.shape), value.dtype) for name, value in tokens.items()} == {
        "calibration": ((6, 16), torch.int32),
        "validation": ((3, 16), torch.int32),
    }
    listing = json.loads(artifact.file("crops.json").read_text())
    used = {split: {name for crop in entry["documents"] for name in crop} for split, entry in listing.items()}
    assert len(listing["calibration"]["documents"]) == 6 and not used["calibration"] & used["validation"]
    assert artifact.manifest["sha256"] == {split: entry["sha256"] for split, entry in listing.items()}
    assert artifact.manifest["tokens"] == {"calibration": 96, "validation": 48}
    again = run(tmp_path, {"calibration": 0.5, "validation": 0.5})
    assert again.digest == artifact.digest
    assert run(tmp_path, {"calibration": 0.5, "validation": 0.5}, seed=5).digest != artifact.digest


def test_the_stage_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FreelunchError, match=r"data\.texts\.splits: has no split validation"):
        run(tmp_path, {"calibration": 0.5, "test": 0.5})
    with pytest.raises(FreelunchError, match=r"data\.texts \(calibration\) has more than 900 tokens"):
        run(tmp_path, {"calibration": 0.5, "validation": 0.5}, length=900)
