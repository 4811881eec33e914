"""Pruning stages on every kind of input: what they write, what lies over the model, and what a killed job leaves."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaMLP

from freelunch.costs import Cost, cost
from freelunch.engine.overlays import unpack
from freelunch.plan.plan import Plan
from freelunch.plan.spec import parse_spec
from freelunch.plan.specs import PrunedSpec, ReconstructedSpec
from freelunch.pruning.method import parse_method
from freelunch.results.artifacts import Artifact, checksum
from merging import lay_over, tensors
from one_of_each import small_config
from stage_runs import need, run, subjects, tiny_config, tiny_plan

RUNS: list[dict[str, Any]] = [
    {"criterion": "wanda", "pattern": "50%", "prune_inputs": ["dense", "sparse"], "recovery": "none"},
    {"criterion": "sparsegpt", "pattern": "2:4", "prune_inputs": ["dense", "sparse"], "recovery": "none"},
    {"criterion": "flap", "pattern": "25% structured global", "refinement": "bias", "recovery": "none"},
    {"criterion": "wanda", "pattern": "50%", "prune_inputs": "recovered", "window": ["attention_mlp", "block", 3]},
    {"criterion": "sparsegpt", "pattern": "50%", "window": ["attention_mlp", "block"]},
    {"criterion": "flap", "pattern": "25% structured", "refinement": "bias", "window": "attention_mlp"},
    {"criterion": "sparsegpt", "pattern": "40% global", "prune_inputs": "recovered", "window": "block"},
]


def make() -> Plan:
    raw = tiny_config()
    raw["models"]["tiny"]["dtype"] = "float32"
    raw["suites"]["tiny"]["runs"] = RUNS
    return tiny_plan(raw)


PLAN = make()
SUBJECTS = subjects(PLAN)


def find(**wanted: Any) -> Any:
    (found,) = (
        subject
        for subject in SUBJECTS
        if all(getattr(subject, key, getattr(getattr(subject, "pruned", None), key, None)) == value
               for key, value in wanted.items())
        and isinstance(subject, ReconstructedSpec) == ("window" in wanted)
    )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flows")


def dense_model(root: Path) -> Any:
    spec = next(iter(PLAN.stage("models").values()))
    return AutoModelForCausalLM.from_pretrained(root / spec.folder, dtype=torch.float32)


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda spec: spec.label)
def test_what_is_evaluated_is_the_merged_model(subject: Any, root: Path) -> None:
    evaluation = next(run.evaluation for run in PLAN.runs["tiny"] if run.evaluation.subject == subject)
    metrics = json.loads(need(evaluation, root).file("metrics.json").read_text())
    model = dense_model(root)
    lay_over(model, *(Artifact(root / overlay.folder, overlay) for overlay in evaluation.overlays))
    text = "\n\n".join(json.loads(line)["text"] for line in (root / evaluation.data[0].folder / "test.jsonl").open())
    from transformers import AutoTokenizer

    tokens = torch.tensor(AutoTokenizer.from_pretrained(root / evaluation.base.folder)(text)["input_ids"][: 8 * 64])
    with torch.no_grad():
        logits = model(tokens.reshape(8, 64)).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens.reshape(8, 64)[:, 1:].flatten())
    test = next(metric for metric in metrics if metric["split"] == "test")
    assert test["value"] == pytest.approx(loss.exp().item(), rel=1e-4)


def calibration_tokens(root: Path, spec: PrunedSpec) -> torch.Tensor:
    folder = root / spec.dense.calibration.folder
    return load_file(folder / "tokens.safetensors")["calibration"].long()


def _note(seen: dict[str, torch.Tensor], name: str, _: Any, inputs: Any) -> None:
    seen[name] = inputs[0].flatten(0, 1)


def inputs_of(model: Any, block: int, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the linear layers of a block of a whole model in memory read."""
    prefix, seen, handles = f"model.layers.{block}.", {}, []
    for name, module in model.named_modules():
        if name.startswith(prefix) and isinstance(module, torch.nn.Linear):
            handles.append(module.register_forward_pre_hook(partial(_note, seen, name)))
    with torch.no_grad():
        model(tokens)
    for handle in handles:
        handle.remove()
    return seen


def wanda_mask(weight: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    scores = weight.abs() * inputs.square().sum(0).sqrt()
    order = scores.sort(dim=1, stable=True).indices
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, order[:, : scores.shape[1] // 2], False)


@pytest.mark.parametrize("inputs", ["dense", "sparse"])
def test_masks_are_those_of_the_whole_model_pruned_by_hand(inputs: str, root: Path) -> None:
    spec = find(criterion="wanda", prune_inputs=inputs)
    found = tensors(need(spec, root), "masks-")
    model, tokens = dense_model(root), calibration_tokens(root, spec)
    differ = total = 0
    for block in range(4):
        for name, seen in inputs_of(model, block, tokens).items():
            weight = model.get_parameter(f"{name}.weight")
            # of a dense model nothing is pruned while its inputs are read
            mask = wanda_mask(weight.detach(), seen)
            differ += int((unpack(found[f"{name}.weight"], weight.shape[1]) != mask).sum())
            total += mask.numel()
            if inputs == "sparse":
                found[f"done {name}"] = mask
        if inputs == "sparse":
            for name in [key for key in found if key.startswith("done ")]:
                with torch.no_grad():
                    model.get_parameter(f"{name.removeprefix('done ')}.weight").mul_(found.pop(name))
    assert differ <= total * 1e-4  # sums in another order


def test_sparse_inputs_give_other_masks_than_dense_ones_behind_the_first_block(root: Path) -> None:
    one, other = (tensors(need(find(criterion="wanda", prune_inputs=i), root), "masks-") for i in ("dense", "sparse"))
    same = {name: torch.equal(one[name], other[name]) for name in one}
    assert all(same[name] for name in same if ".layers.0." in name)
    assert not any(same[name] for name in same if ".layers.3." in name)


@pytest.mark.parametrize("window", ["attention_mlp", "block", 3])
def test_interleaved_masks_are_those_on_the_recovered_prefix(window: Any, root: Path) -> None:
    spec = find(criterion="wanda", prune_inputs="recovered", window=window)
    artifact = need(spec, root)
    assert artifact.manifest["achieved_sparsity"] == 0.5
    masks, trained = tensors(artifact, "masks-"), tensors(artifact, "window-")
    model, tokens = dense_model(root), calibration_tokens(root, spec.pruned)
    size = 3 if window == 3 else 1
    for start in range(0, 4, size):
        blocks = range(start, min(start + size, 4))
        for block in blocks:
            differ = total = 0
            for name, seen in inputs_of(model, block, tokens).items():
                parameter = model.get_parameter(f"{name}.weight")
                mask = unpack(masks[f"{name}.weight"], parameter.shape[1])
                differ += int((wanda_mask(parameter.detach(), seen) != mask).sum())
                total += mask.numel()
            assert differ <= total * 1e-3, block
            with torch.no_grad():
                for name, packed in masks.items():
                    if f".layers.{block}." in name:
                        parameter = model.get_parameter(name)
                        parameter.mul_(unpack(packed, parameter.shape[1]))
        with torch.no_grad():
            for name, tensor in trained.items():
                if any(f".layers.{block}." in name for block in blocks):
                    model.get_parameter(name).copy_(tensor)


@pytest.mark.parametrize("stop_after", [1, 2, 3, 5])
def test_an_interrupted_interleaved_recovery_ends_with_the_same_bits(
    stop_after: int, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from freelunch.stages import reconstructed as module

    spec = find(criterion="wanda", prune_inputs="recovered", window="attention_mlp")
    whole = need(spec, root)
    names = [name for name in whole.files if name.endswith(".safetensors")]
    wanted = {name: checksum(whole.file(name)) for name in names}
    folder = tmp_path / "run"
    shutil.copytree(root, folder)
    shutil.rmtree(folder / spec.folder)
    real, calls = module.reconstruct_window, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments[1].name)
        if len(calls) > stop_after:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "reconstruct_window", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(spec, folder)
    monkeypatch.setattr(module, "reconstruct_window", real)
    again = run(spec, folder)
    assert again.manifest["resumed_windows"] == stop_after
    assert {name: checksum(again.file(name)) for name in names} == wanted


def test_a_damaged_mask_of_an_interleaved_recovery_is_made_again_with_all_that_follows(
    root: Path, tmp_path: Path
) -> None:
    spec = find(criterion="wanda", prune_inputs="recovered", window="block")
    whole = need(spec, root)
    wanted = {name: checksum(whole.file(name)) for name in whole.files if name.endswith(".safetensors")}
    folder = tmp_path / "run"
    shutil.copytree(root, folder)
    (folder / spec.manifest).unlink()
    masks = folder / spec.folder / "masks-002.safetensors"
    masks.write_bytes(masks.read_bytes()[:-1] + b"\xff")
    again = run(spec, folder)
    assert again.manifest["resumed_windows"] == 2
    assert {name: checksum(again.file(name)) for name in wanted} == wanted


def test_recovery_starts_from_the_weights_that_pruning_updated(root: Path) -> None:
    spec = find(criterion="sparsegpt", pattern="50%", window="block")
    artifact = need(spec, root)
    pruned = Artifact(root / spec.pruned.folder, spec.pruned)
    assert len(tensors(pruned, "changed-")) == 4 * 7
    # the loss of the first window before training, by hand: updated weights on dense inputs against dense outputs
    model, merged = dense_model(root), dense_model(root)
    lay_over(merged, pruned)
    folder = root / spec.pruned.dense.calibration.folder
    tokens = load_file(folder / "tokens.safetensors")["validation"].long()
    with torch.no_grad():
        target, output = (each(tokens, output_hidden_states=True).hidden_states[1] for each in (model, merged))
    first = artifact.manifest["windows"][0]
    assert first["losses"][0] == pytest.approx(float((target - output).square().mean()), rel=1e-4)
    assert first["best_loss"] < first["losses"][0]


def test_biases_that_pruning_added_are_there_in_recovery_and_are_trained(root: Path) -> None:
    spec = find(criterion="flap", pattern="25% structured", window="attention_mlp")
    artifact = need(spec, root)
    added = tensors(Artifact(root / spec.pruned.folder, spec.pruned), "changed-")
    trained = tensors(artifact, "window-")
    assert "model.layers.1.self_attn.o_proj.bias" in added and "model.layers.1.mlp.down_proj.bias" in added
    for name, before in added.items():
        assert name in trained and trained[name].shape == before.shape
    assert any(not torch.equal(trained[name], added[name]) for name in added)


def test_gram_matrices_are_those_of_the_whole_model(root: Path) -> None:
    spec = find(criterion="sparsegpt", pattern="2:4", prune_inputs="dense")
    assert spec.grams is not None
    found = tensors(need(spec.grams, root))
    model, tokens = dense_model(root), calibration_tokens(root, spec)
    assert sum(".layers.2." in name for name in found) == 4  # q/k/v, o, gate/up, down
    for block in range(4):
        for name, seen in inputs_of(model, block, tokens).items():
            if name in found:
                torch.testing.assert_close(found[name], seen.T @ seen, rtol=1e-3, atol=1e-3)


def test_only_methods_that_look_at_gram_matrices_wait_for_them() -> None:
    assert find(criterion="wanda", prune_inputs="dense").grams is None
    # with other inputs the Gram matrices of the dense model matter only where one threshold is found first
    assert find(criterion="sparsegpt", prune_inputs="sparse").grams is None
    assert find(criterion="sparsegpt", pattern="40% global", window="block").pruned.grams is not None
    assert parse_method("magnitude", "50%", "uniform", "exact").needs_gram


def test_files_of_a_record_that_is_not_trusted_do_not_become_part_of_the_result(root: Path, tmp_path: Path) -> None:
    spec = find(criterion="wanda", prune_inputs="recovered", window="block")
    whole = need(spec, root)
    folder = tmp_path / "run"
    shutil.copytree(root, folder)
    (folder / spec.manifest).unlink()
    # as if other code had changed weights, too, and was killed
    stale = folder / spec.folder / "changed-001.safetensors"
    shutil.copy(folder / spec.folder / "masks-001.safetensors", stale)
    about = folder / spec.folder / "window-001.json"
    record = json.loads(about.read_text())
    record["files"][stale.name] = {"bytes": stale.stat().st_size, "sha256": checksum(stale)}
    about.write_text(json.dumps(record | {"signature": "of other code"}))
    again = run(spec, folder)
    assert again.manifest["resumed_windows"] == 1 and again.files == whole.files and not stale.exists()


def test_the_plan_counts_what_pruning_takes() -> None:
    def needs(**changes: Any) -> Cost:
        return cost(parse_spec(find(criterion="wanda", prune_inputs="dense").model_dump() | changes), PLAN.config)

    plain, updated, exact = needs(), needs(refinement="admm"), needs(refinement="exact")
    assert plain.operations < min(updated.operations, exact.operations)
    assert plain.host < min(updated.host, exact.host) and plain.disk < updated.disk == exact.disk
    assert needs(prune_inputs="sparse").operations > plain.operations
    interleaved = find(criterion="wanda", prune_inputs="recovered", window="block")
    pruned = interleaved.pruned.model_dump() | {"prune_inputs": "dense"}
    apart = parse_spec(interleaved.model_dump() | {"pruned": pruned})
    assert cost(interleaved, PLAN.config).operations > cost(apart, PLAN.config).operations
    assert cost(interleaved, PLAN.config).disk > cost(apart, PLAN.config).disk


@pytest.mark.parametrize("inputs", ["dense", "sparse", "recovered"])
def test_a_matrix_that_is_never_called_is_named_and_counts_as_dense(
    inputs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Spare(LlamaMLP):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.spare = torch.nn.Linear(config.hidden_size, 40, bias=False)

    monkeypatch.setattr(modeling_llama, "LlamaMLP", Spare)
    raw = small_config()
    raw["suites"]["tiny"]["runs"] = [
        {"criterion": "wanda", "pattern": "50%", "prune_inputs": inputs, "window": "block"}
        | ({} if inputs == "recovered" else {"recovery": "none"})
    ]
    (spec,) = subjects(tiny_plan(raw))
    with caplog.at_level("WARNING"):
        manifest = need(spec, tmp_path).manifest
    names = [f"model.layers.{block}.mlp.spare" for block in range(2)]
    assert manifest["uncalled_matrices"] == names and all(f"{name} is never called" in caplog.text for name in names)
    source = load_file(tmp_path / spec.base.folder / "model.safetensors")
    sizes = {name.removesuffix(".weight"): tensor.numel() for name, tensor in source.items() if ".layers." in name}
    masks = tensors(Artifact(tmp_path / spec.folder, spec), "masks-")
    lost = sum(sizes[name.removesuffix(".weight")] // 2 for name in masks)
    total = sum(sizes[name] for name in manifest["matrix_sparsity"])
    assert {f"{name}.weight" for name in manifest["matrix_sparsity"]} - masks.keys() == {
        f"{name}.weight" for name in names
    }
    assert manifest["achieved_sparsity"] == lost / total < 0.5
    assert [manifest["matrix_sparsity"][name] for name in names] == [0, 0]
