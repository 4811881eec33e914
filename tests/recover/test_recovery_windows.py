"""Windows of other kinds of blocks: fused, parallel, with norms behind what they normalise; and windows of targets."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import test_recovery_flows as flows
import torch
from safetensors.torch import load_file
from test_recovery_flows import Case, check_run
from transformers import AutoConfig, AutoModelForCausalLM

from freelunch.engine.overlays import unpack
from freelunch.errors import FreelunchError
from freelunch.plan.specs import ReconstructedSpec
from freelunch.recover.windows import BlockMatrices
from freelunch.results.stage import Stage
from freelunch.stages.reconstructed import find_matrices
from stage_runs import EXECUTION, need, run, subjects, tiny_config, tiny_plan
from tiny import FAMILIES

PLAIN = {name: FAMILIES["opt"][name] for name in ("vocab_size", "hidden_size", "num_hidden_layers",
         "num_attention_heads", "max_position_embeddings")}  # fmt: skip
ATTENTION, GATED = flows.ATTENTION, flows.GATED
NEOX = ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
FALCON = ("self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")


def shape(config: dict[str, Any], matrices: tuple[str, ...], boundary: str, norms: str, **more: Any) -> SimpleNamespace:
    if config["model_type"] not in ("opt", "falcon"):
        config = config | {"intermediate_size": 48}
    return SimpleNamespace(config=PLAIN | config, matrices=matrices, boundary=boundary, norms=norms.split(), **more)


# with a boundary between the halves, the norms in front of it, and whether keys and channels have their own matrices
BLOCKS = {
    "phi": shape({"model_type": "phi"}, (*ATTENTION, "self_attn.dense", "mlp.fc1", "mlp.fc2"), "", "", parts=False),
    "cohere": shape({"model_type": "cohere", "pad_token_id": 0}, GATED, "", "", parts=False),
    "neox": shape({"model_type": "gpt_neox"}, NEOX, "", "", parts=False),
    "falcon": shape({"model_type": "falcon", "ffn_hidden_size": 48}, FALCON, "", "", parts=False),
    "neox in a row": shape({"model_type": "gpt_neox", "use_parallel_residual": False}, NEOX,
                           "post_attention_layernorm", "input_layernorm attention", parts=False),
    "falcon in a row": shape({"model_type": "falcon", "ffn_hidden_size": 48, "parallel_attn": False, "bias": True},
                             FALCON, "post_attention_layernorm", "input_layernorm self_attention", parts=False),
    "phi3": shape({"model_type": "phi3", "pad_token_id": 0}, ("self_attn.qkv_proj", "self_attn.o_proj",
                  "mlp.gate_up_proj", "mlp.down_proj"), "post_attention_layernorm", "input_layernorm", parts=False),
    "olmo2": shape({"model_type": "olmo2"}, GATED, "mlp", "post_attention_layernorm", parts=True),
    "opt": shape(FAMILIES["opt"] | {"model_type": "opt", "do_layer_norm_before": False, "dropout": 0.1},
                 flows.MATRICES["opt"], "self_attn_layer_norm", "", parts=True),
}  # fmt: skip


def case(name: str, flow: str, kind: Any, monkeypatch: pytest.MonkeyPatch) -> Case:
    about = BLOCKS[name]
    for table, value in (
        (flows.MATRICES, about.matrices),
        (flows.BOUNDARY, about.boundary),
        (flows.NORMS, about.norms),
    ):
        monkeypatch.setitem(table, name, value)
    torch.manual_seed(1)
    config = AutoConfig.for_model(**about.config | {"num_hidden_layers": 2 if kind == "matrix" else 3})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return Case(name, flow, kind, model=model)


@pytest.mark.parametrize(("kind", "flow"), [("matrix", "sparse_dense"), ("attention_mlp", "sparse_local"),
                                            ("attention_mlp", "dense"), (2, "sparse_local"), ("model", "dense"),
                                            ("block", "sparse_dense"), ("key_up", "sparse_local")])  # fmt: skip
@pytest.mark.parametrize("name", BLOCKS)
def test_windows_of_other_blocks_work_or_are_refused(
    name: str, kind: Any, flow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, about = case(name, flow, kind, monkeypatch), BLOCKS[name]
    if kind == "key_up" and not about.parts:
        pytest.skip("refused by find_matrices")
    if kind == "attention_mlp" and not about.boundary:
        block = type(found.model.get_submodule(f"{found.prefix}.0")).__name__
        with pytest.raises(FreelunchError, match=f"^{block}: cannot be cut .* use window: block"):
            next(found.train())
        return
    check_run(found, flow)


@pytest.mark.parametrize("flow", ["dense", "sparse_dense"])
@pytest.mark.parametrize("name", ["phi", "cohere"])
def test_keys_that_have_no_part_in_the_up_projection_are_refused(
    name: str, flow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = case(name, flow, "key_up", monkeypatch)
    wanted = rf"^window 0\.key_up: {found.prefix}\.0\.self_attn\.k_proj\.\w+ has no part .* use window matrix or block"
    with pytest.raises(FreelunchError, match=wanted):
        next(found.train())
    assert all(parameter.is_meta for block in found.student.blocks for parameter in block.parameters())


@pytest.mark.parametrize(("parametrization", "rate"), [("full", 1e-3), ("mask_lora(rank=2)", 3e-4)])
@pytest.mark.parametrize("family", ["llama", "opt", "gemma2"])
def test_the_gradient_reaches_the_key_through_attention(family: str, parametrization: str, rate: float) -> None:
    found = Case(family, "sparse_local", "key_up")
    training = flows.TRAINING.model_copy(
        update={"parametrization": parametrization, "learning_rate": rate, "epochs": 3}
    )
    for window, _, result in found.train(training):
        key, up = (f"{found.prefix}.{window.blocks[0]}.{name}.weight" for name in window.matrices)
        assert sorted(result.tensors) == sorted([key, up]) and result.fit.best_at > 0, result.fit.losses
        for name in (key, up):
            moved = (result.tensors[name] != found.pruned(name)).sum()
            assert moved > 0.99 * found.masks[name].sum(), name


@pytest.mark.parametrize("kind", ["matrix", "attention_mlp", "block", "key_up"])
def test_targets_alone_are_trained(kind: str) -> None:
    targets = "k_proj" if kind == "key_up" else "q_proj + v_proj"
    found = Case("qwen2", "sparse_dense", kind, targets)
    training = flows.TRAINING.model_copy(update={"parametrization": "full + biases", "targets": targets})
    results = [(window, result) for window, _, result in found.train(training)]
    if kind == "matrix":
        assert [window.name for window, _ in results] == [f"{b}.self_attn.{n}_proj" for b in range(2) for n in "qv"]
    if kind == "attention_mlp":  # a half without targets is left as it is
        assert all(not result.tensors and result.fit.steps == [0] for window, result in results if window.start % 2)
    trained = [name for _, result in results for name in result.tensors]
    blocks, letters = range(2 if kind == "matrix" else 3), "k" if kind == "key_up" else "qv"
    wanted = {f"model.layers.{b}.self_attn.{n}_proj.{k}" for b in blocks for n in letters for k in ("weight", "bias")}
    assert len(trained) == len(wanted) and set(trained) == wanted
    flows.check_result(found)


# --- through the stages ----------------------------------------------------------------------------------------------


def spec_of(config: dict[str, Any], window: str, flow: str = "dense", blocks: int = 2) -> ReconstructedSpec:
    raw = tiny_config()
    small = {"vocab_size": 320, "num_hidden_layers": blocks}
    raw["models"]["tiny"] = {"dtype": "float32", "random": {"seed": 0, "config": PLAIN | config | small}}
    raw["suites"]["tiny"]["runs"] = [{"criterion": "magnitude", "pattern": "50%", "window": window, "flow": flow}]
    raw["suites"]["tiny"]["defaults"] |= {"sequences": 16 if window == "matrix_exact" else 4, "length": 32}
    (spec,) = subjects(tiny_plan(raw))
    assert isinstance(spec, ReconstructedSpec)
    return spec


@pytest.mark.parametrize("name", [name for name in BLOCKS if "falcon" not in name])  # whose facts have no known names
def test_matrices_are_found_in_the_order_of_calls_or_keys_are_refused(name: str, tmp_path: Path) -> None:
    about = BLOCKS[name]
    spec = spec_of(about.config, "matrix")
    names = [window["window"] for window in need(spec, tmp_path).manifest["windows"]]
    assert names == [f"{block}.{matrix}" for block in range(2) for matrix in about.matrices]
    keys = spec_of(about.config, "key_up")
    if about.parts:
        stage = Stage(keys, tmp_path, EXECUTION, "code")
        up = "fc1" if name == "opt" else "mlp.up_proj"
        assert find_matrices(stage, keys) == [BlockMatrices(about.matrices, "self_attn.k_proj", up)] * 2
        windows = run(keys, tmp_path).manifest["windows"]
        assert [window["window"] for window in windows] == ["0.key_up", "1.key_up"]
        return
    with pytest.raises(FreelunchError, match=r"^window key_up needs .* block 0 of tiny calls .* use window matrix"):
        run(keys, tmp_path)


def whole_models(spec: ReconstructedSpec, root: Path) -> tuple[Any, Any, torch.Tensor]:
    """The dense and the pruned model in memory, and the tokens of the validation split."""
    model, pruned = (
        AutoModelForCausalLM.from_pretrained(root / spec.base.folder, dtype=torch.float32) for _ in range(2)
    )
    for path in (root / spec.pruned.folder).glob("masks-*"):
        for name, packed in load_file(path).items():
            weight = pruned.get_parameter(name).data
            weight.mul_(unpack(packed, weight.shape[1]))
    return model, pruned, load_file(root / spec.dense.calibration.folder / "tokens.safetensors")["validation"].long()


LLAMA = FAMILIES["llama"] | {"model_type": "llama"}


def test_the_stage_gives_windows_the_recovered_network_before_them(tmp_path: Path) -> None:
    spec = spec_of(LLAMA, "block", "sparse_dense", blocks=3)
    artifact = need(spec, tmp_path)
    dense, student, tokens = whole_models(spec, tmp_path)
    with torch.no_grad():
        for window in artifact.manifest["windows"][:2]:  # behind the last block there is a norm
            tensors = load_file(artifact.file(f"window-{window['index']:03d}.safetensors"))
            for loss in (window["losses"][0], window["best_loss"]):
                states = (
                    model(tokens, output_hidden_states=True).hidden_states[window["index"] + 1]
                    for model in (dense, student)
                )
                assert loss == pytest.approx((next(states) - next(states)).square().mean().item(), rel=1e-3)
                student.load_state_dict(tensors, strict=False)


def test_the_stage_hands_on_the_official_stream(tmp_path: Path) -> None:
    spec = spec_of(LLAMA, "matrix", "official_matrix")
    artifact = need(spec, tmp_path)
    dense, student, tokens = whole_models(spec, tmp_path)
    steps = flows.official(student, dense.state_dict(), tokens)
    for window, (name, inputs, target) in zip(artifact.manifest["windows"], steps, strict=True):
        assert window["window"] == name
        output = inputs @ student.get_parameter(f"model.layers.{name}.weight").detach().T
        assert window["losses"][0] == pytest.approx((output - target).square().mean().item(), rel=1e-3), name
        student.load_state_dict(load_file(artifact.file(f"window-{window['index']:03d}.safetensors")), strict=False)
