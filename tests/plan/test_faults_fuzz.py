"""Whatever is in a config, or in a file that is read: a value comes out, or a ``FreelunchError``, and nothing else."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from freelunch.engine.overlays import SafetensorsFiles
from freelunch.inputs.documents import read_records
from freelunch.inputs.models import checked_config, model_from_gguf, parameter_count
from freelunch.inputs.sources import wheel_member
from freelunch.plan.config import AXES, parse_config
from freelunch.plan.facts import facts_of_file
from freelunch.plan.plan import make_plan
from freelunch.plan.yaml_files import parse_yaml
from freelunch.results.artifacts import MANIFEST, Artifact, checksum
from fuzzing import FUZZED, KEYS, SCALARS, VALUES, json_of, only_foreseen
from stage_runs import tiny_config
from test_faults_formats import zipped

FILES = st.dictionaries(st.text(max_size=5), VALUES | st.fixed_dictionaries({"bytes": SCALARS, "sha256": SCALARS}))
OF_MODELS = ("model_type", "hidden_size", "num_attention_heads", "auto_map", "vocab_size", "quantization_config",
             "rope_scaling", "dtype", "architectures")  # fmt: skip


def places(raw: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values of a config."""
    yield above
    items = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    for key, value in items:
        yield from places(value, (*above, key))


PLACES = list(places(tiny_config()))


@FUZZED
@example(changes=[(("classifiers", "tiny", "architecture"), "", [], False)])
@given(st.lists(st.tuples(st.sampled_from(PLACES), KEYS, VALUES, st.booleans()), min_size=1, max_size=3))
def test_a_config_with_anything_anywhere(changes: list[tuple[tuple[Any, ...], Any, Any, bool]]) -> None:
    raw: Any = tiny_config()
    for place, key, value, added in changes:
        # where an earlier change took the place away there is nothing to do
        with suppress(KeyError, IndexError, TypeError, AttributeError):
            at = raw
            for step in place if added else place[:-1]:
                at = at[step]
            if added:
                at[key] = value
            elif place:
                at[place[-1]] = value
            else:
                raw = value
    with only_foreseen():
        make_plan(parse_config(raw))


@FUZZED
@given(st.sampled_from(AXES), VALUES | st.text("wandari50%:2 ()+=,.x", max_size=12))
def test_an_axis_of_anything(axis: str, value: Any) -> None:
    raw = tiny_config()
    raw["suites"]["tiny"]["runs"] = [{"criterion": "wanda", "pattern": "50%", axis: value}]
    with only_foreseen():
        make_plan(parse_config(raw))


@FUZZED
@given(st.text(max_size=60) | st.text("-:?[]{}&*!|>%@#'\"\n abc019.<", max_size=60) | VALUES.map(yaml.safe_dump))
def test_yaml_of_anything(text: str) -> None:
    with only_foreseen():
        parse_yaml(text)


NAMES = ("x.json", "x.jsonl", "x.txt", "x.json.gz", "x.parquet")
CUTS = st.tuples(st.integers(0, 400), st.binary(max_size=12), st.integers(0, 12))
DATA = save({"a": torch.arange(8.0), "b": torch.ones(2, 3, dtype=torch.bfloat16)})


def spoilt(raw: bytes, cuts: list[tuple[int, bytes, int]]) -> bytes:
    """Bytes with some others in the place of some."""
    for start, put, taken in cuts:
        at = start % (len(raw) + 1)
        raw = raw[:at] + put + raw[at + taken :]
    return raw


@FUZZED
@given(cuts=st.lists(CUTS, min_size=1, max_size=3) | st.binary(max_size=100))
def test_safetensors_of_anything(cuts: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(cuts if isinstance(cuts, bytes) else spoilt(DATA, cuts))
    with only_foreseen():
        parameter_count([path])
    with only_foreseen():
        source = SafetensorsFiles([path])
        for name in source.names:
            assert tuple(source.load(name).shape) == source.shape(name)


@FUZZED
@given(cuts=st.lists(CUTS, max_size=3), name=st.sampled_from(NAMES))
def test_a_wheel_of_anything(cuts: Any, name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.whl"
    path.write_bytes(spoilt(zipped(tmp_path, json.dumps([{"text": "some text"}] * 20).encode()), cuts))
    with only_foreseen(), wheel_member(path, "x/data.json", checksum(path)) as stream:
        list(read_records(stream, name))


@FUZZED
@given(st.binary(max_size=80) | VALUES.map(json_of).map(str.encode), st.sampled_from(NAMES))
def test_records_of_anything(data: bytes, name: str) -> None:
    with only_foreseen():
        list(read_records(io.BytesIO(data), name))


@FUZZED
@given(changes=st.dictionaries(st.sampled_from(OF_MODELS), VALUES))
def test_a_model_config_of_anything(changes: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json_of({"model_type": "llama"} | changes))
    with only_foreseen():
        checked_config(tmp_path)
    with only_foreseen():
        facts_of_file(path)


@FUZZED
@given(manifest=VALUES | st.fixed_dictionaries({"files": VALUES | FILES, "key": VALUES}))
def test_a_manifest_of_anything(manifest: Any, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json_of(manifest))
    with only_foreseen():
        artifact = Artifact(tmp_path)
        assert artifact.digest
        for name in artifact.files:
            artifact.file(name)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    from gguf import GGUFWriter

    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(8)
    writer.add_head_count(1)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b"])
    writer.add_tensor("token_embd.weight", torch.ones(2, 8).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@settings(FUZZED, max_examples=FUZZED.max_examples // 3)
@given(cuts=st.lists(CUTS, max_size=3))
def test_a_gguf_of_anything(gguf: bytes, cuts: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(spoilt(gguf, cuts))
    with only_foreseen():
        model_from_gguf(path, torch.float32)
