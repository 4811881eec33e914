"""Exported models: transformers loads them, they compute what the masked model does, and smaller ones are smaller."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from freelunch.engine.overlays import InMemory, Masked, Replaced, pack, unpack
from freelunch.errors import FreelunchError
from freelunch.inputs.export import Cut, Export, export
from freelunch.plan.config import ExecutionConfig
from freelunch.plan.plan import Plan
from freelunch.plan.spec import parse_spec
from freelunch.plan.specs import ExportSpec, PrunedSpec
from freelunch.pruning.structured import Heads, Units, find_units
from freelunch.results.artifacts import Artifact
from freelunch.stages.exported import _write_tensors
from merging import lay_over, tensors
from stage_runs import need, run, tiny_config, tiny_plan
from tiny import FAMILIES, random_model, random_tokens

EXECUTION = ExecutionConfig(device="cpu", stream_tokens=128)


# --- plans of exports, with masks made by hand ------------------------------------------------------------------------

QKV = [f"self_attn.{part}_proj" for part in "qkv"]
PARTS = {"opt": [*QKV, "self_attn.out_proj", "fc1", "fc2"]}
GATED = [*QKV, "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
GROUPED = [[0, 1], [2, 3], [0, 1]]  # one whole key-value head of two
SPLIT = [[0, 2], [1, 2], [1, 3]]  # half of both
MIXED = [[0, 1], [1, 2], [2, 3]]
CHANNELS = [list(range(0, 40, 2)), list(range(20)), list(range(28, 48))]


def units_of(family: str, model: Any) -> list[list[Units]]:
    """Heads and channels of every block, from the names that the family has."""
    prefix = "model.decoder.layers" if family == "opt" else "model.layers"
    config = model.config
    heads = Heads(config.num_attention_heads, getattr(config, "num_key_value_heads", config.num_attention_heads), 8)
    parts = PARTS.get(family, GATED)
    leaders = [parts[0]] * 3 + [parts[3]] + [parts[4]] * (len(parts) - 5) + [parts[-1]]
    found = []
    for block in range(config.num_hidden_layers):
        names = [f"{prefix}.{block}.{part}" for part in parts]
        pairs = dict(zip(names, [f"{prefix}.{block}.{part}" for part in leaders], strict=True))
        shapes = {name: tuple(model.get_parameter(f"{name}.weight").shape) for name in names}
        found.append(find_units(pairs, shapes, heads))
    return found


def by_hand(family: str, heads: list[list[int]], channels: list[list[int]], **changes: Any) -> tuple[Any, Export]:
    """A model that lost all but some heads and channels of every block, masked, and its export."""
    model = random_model(family, **changes)
    units = units_of(family, model)
    masks: dict[str, Tensor] = {}
    for block, kept in zip(units, zip(heads, channels, strict=True), strict=True):
        for each, stay in zip(block, kept, strict=True):
            chosen = torch.zeros(each.count, dtype=torch.bool)
            chosen[stay] = True
            shapes = {name: model.get_parameter(f"{name}.weight").shape for name in [each.consumer, *each.producers]}
            masks |= {f"{name}.weight": mask for name, mask in each.masks(chosen, shapes).items()}
    base = InMemory({name: tensor.clone() for name, tensor in model.state_dict().items()})
    masked = Masked(base, InMemory({name: pack(mask) for name, mask in masks.items()}))
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return model, export(model.config, torch.float32, masked, masked, units)


def built(found: Export) -> Any:
    model = AutoModelForCausalLM.from_config(found.config, dtype=torch.float32).eval()
    model.load_state_dict(
        {name: found.load(name) for name in found.skeleton}, strict=not model.config.tie_word_embeddings
    )
    return model


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model.eval()(random_tokens(3, 17)).logits
    return found


def assert_same(one: Any, other: Any) -> None:
    wanted = logits(other)
    torch.testing.assert_close(logits(one), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().mean()))


def size(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("heads", "written"), [(GROUPED, (2, 1)), (SPLIT, (2, 2)), (MIXED, (2, 2))], ids=["grouped", "split", "mixed"]
)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma2"])
def test_a_smaller_model_computes_what_the_masked_one_does(
    family: str, heads: list[list[int]], written: tuple[int, int]
) -> None:
    model, found = by_hand(family, heads, CHANNELS)
    assert found.smaller and not found.reasons
    config = found.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (*written, 8)
    assert config.intermediate_size == 20
    smaller = built(found)
    # of 32 columns a block loses 2 x 2 heads of 8 in q and o, so many in k and v as go, and 3 x 28 channels
    assert size(model) - size(smaller) >= 3 * 32 * (8 * (4 + 2 * (2 - written[1])) + 3 * 28)
    assert_same(smaller, model)


@pytest.mark.parametrize(
    ("last", "pairs"), [([3, 5, 6, 7], 2), ([0, 1, 2, 3], 4), ([0, 3, 6, 7], 4)], ids=["equal", "unequal", "more"]
)
def test_groups_stay_groups_where_all_that_stay_are_of_one_size(last: list[int], pairs: int) -> None:
    shape = {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 72, "head_dim": 8}
    model, found = by_hand("qwen2", [[0, 1, 3, 5], [1, 2, 7, 8], last], CHANNELS, **shape)
    assert (found.config.num_attention_heads, found.config.num_key_value_heads) == (4, pairs)
    assert_same(built(found), model)


def test_heads_stay_where_a_key_value_head_for_each_would_save_nothing() -> None:
    model, found = by_hand("qwen2", [[0, 1, 2]] * 3, CHANNELS)
    assert found.reasons == ("heads stay, as zeros: the model would not have fewer weights",)
    assert (found.config.num_attention_heads, found.config.intermediate_size) == (4, 20)
    assert_same(built(found), model)


def test_a_number_of_heads_that_the_config_refuses_is_not_written() -> None:
    model, found = by_hand("llama", [[0, 1, 3]] * 3, CHANNELS, num_key_value_heads=4)
    assert len(found.reasons) == 1 and "heads stay" in found.reasons[0] and "not a multiple" in found.reasons[0]
    assert found.config.num_attention_heads == 4
    assert_same(built(found), model)
    model, found = by_hand("qwen2", [[0, 1, 3]] * 3, CHANNELS, num_key_value_heads=4)
    assert not found.reasons and found.config.num_attention_heads == found.config.num_key_value_heads == 3
    assert_same(built(found), model)


def test_heads_stay_where_the_config_has_no_width_for_them() -> None:
    model, found = by_hand("opt", [[0, 2]] * 3, CHANNELS)
    assert (
        len(found.reasons) == 1
        and "heads stay" in found.reasons[0]
        and "_proj.bias is [32], not [16]" in found.reasons[0]
    )
    assert found.smaller and found.config.ffn_dim == 20 and found.config.num_attention_heads == 4
    assert_same(built(found), model)


def test_blocks_that_keep_different_numbers_keep_all() -> None:
    model, found = by_hand("llama", [[0, 1], [2, 3], [0, 1, 2]], [CHANNELS[0], CHANNELS[1], [1, 2]])
    assert not found.smaller and len(found.reasons) == 2
    assert "blocks keep from 2 to 3 of 4" in found.reasons[0] and "from 2 to 20 of 48" in found.reasons[1]
    assert_same(built(found), model)


def test_heads_stay_where_a_norm_runs_over_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "olmo2", FAMILIES["llama"])
    model, found = by_hand("olmo2", GROUPED, CHANNELS)
    assert len(found.reasons) == 1 and "heads stay" in found.reasons[0] and "norm.weight is" in found.reasons[0]
    assert_same(built(found), model)


def test_only_biases_that_are_not_zero_need_a_place() -> None:
    model = random_model("qwen2")
    base = InMemory(dict(model.state_dict()))
    masked = Masked(base, InMemory({}))
    name = "model.layers.1.self_attn.o_proj.bias"
    zero = Replaced(base, InMemory({name: torch.zeros(32)}))
    assert_same(built(export(model.config, torch.float32, zero, masked, [])), model)
    other = Replaced(base, InMemory({name: torch.ones(32)}))
    with pytest.raises(FreelunchError, match=r"layers\.1\.self_attn\.o_proj\.bias.*qwen2.*no place"):
        export(model.config, torch.float32, other, masked, [])


def test_one_switch_is_set_for_the_biases_that_need_it_and_the_rest_are_zero() -> None:
    model = random_model("llama")
    base = InMemory(dict(model.state_dict()))
    name = "model.layers.1.mlp.down_proj.bias"
    added = Replaced(base, InMemory({name: torch.randn(32)}))
    found = export(model.config, torch.float32, added, Masked(base, InMemory({})), [])
    assert found.config.mlp_bias and not found.config.attention_bias
    merged = random_model("llama")
    merged.model.layers[1].mlp.down_proj.bias = torch.nn.Parameter(added.load(name).clone())
    assert_same(built(found), merged)
    assert not model.config.mlp_bias


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_file_written_tensor_by_tensor_is_read_by_safetensors(dtype: torch.dtype, tmp_path: Path) -> None:
    model = random_model("qwen2")
    base = InMemory(dict(model.state_dict()))
    found = export(model.config, dtype, base, Masked(base, InMemory({})), [])
    _write_tensors(tmp_path / "model.safetensors", found, list(found.skeleton))
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == model.state_dict().keys() and found.config.dtype == dtype
    for name, tensor in model.state_dict().items():
        assert read[name].dtype == dtype and torch.equal(read[name], tensor.to(dtype)), name


# --- the stage --------------------------------------------------------------------------------------------------------

SHAPE = {
    "vocab_size": 320, "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 8,
    "max_position_embeddings": 128,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": SHAPE | {"intermediate_size": 112, "num_key_value_heads": 8, "tie_word_embeddings": True},
    "qwen2": SHAPE | {"intermediate_size": 112, "num_key_value_heads": 4, "tie_word_embeddings": False},
    "opt": SHAPE | {"ffn_dim": 112, "word_embed_proj_dim": 96},
}
ALL = list(MODELS)
RUNS: list[dict[str, Any]] = [
    {"model": ALL, "criterion": "wanda", "pattern": "50%", "recovery": "none"},
    {"model": ALL, "criterion": "sparsegpt", "pattern": "2:4", "recovery": "none"},
    {"model": ALL, "criterion": "flap", "pattern": "50% structured", "recovery": "none"},
    {"model": ["llama", "qwen2"], "criterion": "flap", "pattern": "25% structured", "refinement": "bias",
     "recovery": "none"},
    {"model": "llama", "criterion": "flap", "pattern": "25% structured global", "refinement": "bias",
     "recovery": "none"},
    {"model": "llama", "criterion": "flap", "pattern": "25% structured", "refinement": "bias", "window": "block"},
    {"model": "llama", "criterion": "wanda", "pattern": "25% structured", "prune_inputs": "recovered",
     "window": "block"},
    {"model": "qwen2", "criterion": "wanda", "pattern": "50%", "window": "attention_mlp"},
]  # fmt: skip


def make() -> Plan:
    raw = tiny_config()
    raw["models"] = {
        name: {"dtype": "float32", "random": {"seed": 0, "config": {"model_type": name} | shape}}
        for name, shape in MODELS.items()
    }
    suite = raw["suites"]["tiny"]
    suite["defaults"] |= {"model": "llama", "sequences": 8, "validation_sequences": 2}
    suite["runs"] = RUNS
    return tiny_plan(raw)


PLAN = make()
EXPORTS = [spec for spec in PLAN.specs.values() if isinstance(spec, ExportSpec)]


def find(model: str, pattern: str, refinement: str = "none") -> ExportSpec:
    wanted = {"pattern": pattern, "refinement": refinement}
    (found,) = (
        spec
        for spec in EXPORTS
        if spec.subject.base.model == model
        and isinstance(spec.subject, PrunedSpec)
        and all(getattr(spec.pruned, key) == value for key, value in wanted.items())
    )
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


def loaded(artifact: Artifact) -> Any:
    """The exported model as a user loads it; nothing may be missing from the files or left over in them."""
    model, report = AutoModelForCausalLM.from_pretrained(
        artifact.folder, dtype="auto", local_files_only=True, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


def merged(root: Path, spec: ExportSpec) -> Any:
    """The dense model with the overlays merged in memory, by hand."""
    model = AutoModelForCausalLM.from_pretrained(root / spec.subject.base.folder, dtype=torch.float32)
    lay_over(model, *(Artifact(root / overlay.folder, overlay) for overlay in spec.subject.overlays))
    return model


def exportable() -> list[ExportSpec]:
    return [spec for spec in EXPORTS if not (spec.subject.base.model == "qwen2" and spec.pruned.refinement == "bias")]


@pytest.mark.parametrize("spec", exportable(), ids=lambda spec: spec.name)
def test_an_export_computes_what_the_merged_model_does(spec: ExportSpec, root: Path) -> None:
    artifact = need(spec, root)
    model, wanted = loaded(artifact), merged(root, spec)
    assert_same(model, wanted)
    dense_model = AutoModelForCausalLM.from_pretrained(root / spec.subject.base.folder, dtype=torch.float32)
    assert not torch.allclose(logits(model), logits(dense_model), rtol=1e-2, atol=1e-3)
    assert artifact.manifest["parameters"] == size(model)
    assert artifact.manifest["parameters_before"] == size(dense_model)
    assert artifact.manifest["smaller"] == (size(model) < size(dense_model))
    ids = AutoTokenizer.from_pretrained(artifact.folder)("a text")["input_ids"]
    assert ids == AutoTokenizer.from_pretrained(root / spec.subject.base.folder)("a text")["input_ids"]
    assert (artifact.folder / "generation_config.json").exists()


@pytest.mark.parametrize("pattern", ["50%", "2:4"])
@pytest.mark.parametrize("model", ALL)
def test_zeros_are_those_of_the_masks(model: str, pattern: str, root: Path) -> None:
    spec = find(model, pattern)
    artifact = need(spec, root)
    found, masks = tensors(artifact), tensors(Artifact(root / spec.subject.folder, spec.subject), "masks-")
    assert len(masks) == 3 * (6 if model == "opt" else 7)
    for name, packed in masks.items():
        assert torch.equal(found[name] != 0, unpack(packed, found[name].shape[1])), name
    assert artifact.manifest["reason"] == f"pattern {pattern} prunes no whole heads or channels"
    assert not artifact.manifest["smaller"] and artifact.manifest["kept"] == {}


def test_structured_exports_are_smaller(root: Path) -> None:
    manifest = need(find("llama", "50% structured"), root).manifest
    assert manifest["smaller"] and manifest["reason"] is None
    assert manifest["kept"] == {"heads": [4] * 3, "channels": [56] * 3}
    # 96 x 96 in q, k, v and o, 96 x 112 in three matrices: half of all
    assert manifest["parameters_before"] - manifest["parameters"] == 3 * (4 * 96 * 96 + 3 * 96 * 112) // 2
    config = json.loads((root / find("llama", "50% structured").folder / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (4, 4, 12)


def test_key_value_heads_are_repeated_where_groups_differ(root: Path) -> None:
    spec = find("qwen2", "50% structured")
    artifact = need(spec, root)
    masks = tensors(Artifact(root / spec.subject.folder, spec.subject), "masks-")
    groups = set()
    for block in range(3):
        kept = unpack(masks[f"model.layers.{block}.self_attn.o_proj.weight"], 96).any(0).reshape(4, 2, 12).any(2).sum(1)
        groups |= {tuple(kept[kept > 0].tolist())}
    assert len(groups) > 1 or len(set(*groups)) > 1, "all groups are equal: this model tests nothing"
    config = json.loads((artifact.folder / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (4, 4, 12)
    assert artifact.manifest["smaller"] and artifact.manifest["reason"] is None


def test_biases_of_a_refinement_are_exported_by_the_switches_of_the_config(root: Path) -> None:
    artifact = need(find("llama", "25% structured", "bias"), root)
    config = json.loads((artifact.folder / "config.json").read_text())
    assert config["attention_bias"] and config["mlp_bias"] and config["num_attention_heads"] == 6
    assert loaded(artifact).model.layers[1].self_attn.o_proj.bias.abs().max() > 0


def test_biases_without_a_place_are_named(root: Path) -> None:
    spec = find("qwen2", "25% structured", "bias")
    with pytest.raises(FreelunchError, match=r"o_proj\.bias.*the config of this model \(qwen2\) has no place"):
        need(spec, root)
    assert not (root / spec.manifest).exists()


def test_a_global_pattern_is_exported_with_zeros_and_the_manifest_says_why(root: Path) -> None:
    spec = find("llama", "25% structured global", "bias")
    manifest = need(spec, root).manifest
    assert not manifest["smaller"] and manifest["reason"].count("blocks keep from") == 2
    assert len(set(manifest["kept"]["heads"])) > 1 and len(set(manifest["kept"]["channels"])) > 1


def test_heads_of_a_model_without_a_width_for_them_stay(root: Path) -> None:
    artifact = need(find("opt", "50% structured"), root)
    assert artifact.manifest["smaller"] and artifact.manifest["reason"].startswith("heads stay, as zeros: with ")
    config = json.loads((artifact.folder / "config.json").read_text())
    assert (config["ffn_dim"], config["num_attention_heads"]) == (56, 8)


def test_tied_embeddings_stay_tied(root: Path) -> None:
    artifact = need(find("llama", "50%"), root)
    assert "lm_head.weight" not in tensors(artifact)
    model = loaded(artifact)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" in tensors(need(find("qwen2", "50%"), root))


def test_a_large_model_is_written_in_shards(root: Path, tmp_path: Path) -> None:
    spec = find("llama", "2:4")
    whole = tensors(need(spec, root))
    (tmp_path / "results").mkdir()
    for stage in ("models", "data", "calibration", "dense", "grams", "pruned"):
        (tmp_path / "results" / stage).symlink_to(root / "results" / stage)
    limit = 4 * size(loaded(Artifact(root / spec.folder, spec))) * 2 // 3
    artifact = run(spec, tmp_path, shard_bytes=limit)
    shards = [name for name in artifact.files if name.endswith(".safetensors") and "/" not in name]
    assert shards == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert all((artifact.folder / name).stat().st_size < limit + 20_000 for name in shards)
    assert_same(loaded(artifact), merged(root, spec))
    again = tensors(artifact)
    assert again.keys() == whole.keys() and all(torch.equal(again[name], whole[name]) for name in whole)
    index = json.loads((artifact.folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == whole.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())


def test_an_interrupted_export_leaves_no_manifest(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = find("opt", "50%")
    before = tensors(need(spec, root))
    real, calls = Export.load, []

    def interrupted(self: Export, name: str) -> Tensor:
        calls.append(name)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return real(self, name)

    monkeypatch.setattr(Export, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(spec, root)
    assert not (root / spec.manifest).exists() and not (root / spec.folder / "model.safetensors").exists()
    monkeypatch.setattr(Export, "load", real)
    again = tensors(run(spec, root))
    assert all(torch.equal(again[name], before[name]) for name in before)


def test_a_cut_that_changes_what_the_first_block_computes_is_not_written(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = find("llama", "50% structured")
    need(spec, root)
    real = Cut.apply

    def shuffled(self: Cut, name: str, tensor: Tensor) -> Tensor:
        found = real(self, name, tensor)
        return found.flip(0) if name.endswith("v_proj.weight") and name.rpartition(".")[0] in self.rows else found

    monkeypatch.setattr(Cut, "apply", shuffled)
    artifact = run(spec, root)
    monkeypatch.setattr(Cut, "apply", real)
    assert not artifact.manifest["smaller"] and "computes something else" in artifact.manifest["reason"]
    assert_same(loaded(artifact), merged(root, spec))
    assert run(spec, root).manifest["smaller"]


@pytest.mark.parametrize("pattern", ["50%", "2:4"])
def test_sizes_are_those_of_counting_by_hand(pattern: str, root: Path) -> None:
    artifact = need(find("qwen2", pattern), root)
    dense = packed = halves = 0
    for tensor in tensors(artifact).values():
        zeros = int((tensor == 0).sum())
        dense += 4 * tensor.numel()
        if tensor.ndim == 1 or not zeros:
            packed, halves = packed + 4 * tensor.numel(), halves + 4 * tensor.numel()
            continue
        rows, columns = tensor.shape
        packed += 4 * (tensor.numel() - zeros) + rows * -(-columns // 8)
        halves += 4 * tensor.numel() // 2 + rows * columns * 4 // 4 // 8
    manifest = artifact.manifest
    assert (manifest["dense_bytes"], manifest["bitmask_bytes"]) == (dense, packed) and packed < dense
    assert manifest["two_four_bytes"] == (halves if pattern == "2:4" else None)
    text = (artifact.folder / "README.md").read_text()
    assert f"{dense:,} bytes" in text and f"{packed:,} bytes" in text
    # at half of the weights both take one bit per weight beside the values
    assert (f"sparse tensor cores: {halves:,} bytes" in text) == ("sparse tensor cores" in text) == (pattern == "2:4")
    masks = [name for name in artifact.files if name.startswith("masks/")]
    assert len(masks) == 3
    for name in masks:
        for matrix, mask in load_file(artifact.file(name)).items():
            weight = tensors(artifact)[matrix]
            assert torch.equal(unpack(mask, weight.shape[1]), weight != 0)


def test_a_card_has_the_numbers_of_its_own_network_and_a_loaded_model_has_them_too(root: Path) -> None:
    runs = [run for run in PLAN.runs["tiny"] if run.axes and run.axes.window == "attention_mlp"]
    evaluation = next(run.evaluation for run in runs if run.evaluation.subject.stage == "reconstructed")
    spec = ExportSpec(subject=evaluation.subject)
    bare = need(spec, root)
    assert not bare.manifest["evaluated"] and "had not been evaluated" in (bare.folder / "README.md").read_text()
    metrics = json.loads(need(evaluation, root).file("metrics.json").read_text())
    artifact = run(spec, root)
    text = (artifact.folder / "README.md").read_text()
    assert artifact.manifest["evaluated"] and len(metrics) == 2
    for entry in metrics:
        assert f"| ppl@64 | {entry['value']:.4g} ± {entry['stderr']:.4g} |" in text
    assert "| window | attention_mlp |" in text and "wanda" in text and "which the config did not state" in text
    data = evaluation.texts["documents"]
    for entry in metrics:
        lines = (root / data.folder / f"{entry['split']}.jsonl").read_text().splitlines()
        joined = data.source.separator.join(json.loads(line)["text"] for line in lines)
        ids = AutoTokenizer.from_pretrained(artifact.folder)(joined, verbose=False)["input_ids"][: 8 * 64]
        windows = torch.tensor(ids).reshape(8, 64)
        model = AutoModelForCausalLM.from_pretrained(artifact.folder, dtype=torch.float32)
        with torch.no_grad():
            loss = model(windows, labels=windows).loss
        assert float(loss.exp()) == pytest.approx(entry["value"], rel=1e-4)


def test_smaller_models_have_no_masks(root: Path) -> None:
    artifact = need(find("llama", "50% structured"), root)
    assert not [name for name in artifact.files if "masks" in name]
    assert "cut out" in (artifact.folder / "README.md").read_text()
    assert artifact.manifest["bitmask_bytes"] == artifact.manifest["dense_bytes"] == 4 * artifact.manifest["parameters"]


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_every_pruned_or_recovered_network_can_be_exported_and_no_suite_needs_it() -> None:
    subjects = {item.evaluation.subject.name for item in PLAN.runs["tiny"] if item.axes}
    assert {spec.subject.name for spec in EXPORTS} == subjects and len(EXPORTS) == len(subjects) == 15
    assert not any(spec.stage == "exported" for spec in PLAN.needed("tiny"))
    assert all(spec.manifest == f"results/exported/{spec.name}/manifest.json" for spec in EXPORTS)
    assert all(up.manifest in PLAN.specs for spec in EXPORTS for up in spec.upstream())


def test_only_structured_exports_wait_for_the_dense_stage() -> None:
    for spec in EXPORTS:
        assert ("dense" in {up.stage for up in spec.upstream()}) == ("structured" in spec.pruned.pattern)


def test_an_export_is_read_back_from_its_manifest() -> None:
    for spec in EXPORTS:
        assert parse_spec(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec
