"""The stages one after the other, as functions: what they write, and what happens when something goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from freelunch.engine.overlays import unpack
from freelunch.errors import FreelunchError
from freelunch.plan.spec import Spec
from freelunch.plan.specs import EvaluationSpec, PrunedSpec, ReconstructedSpec
from freelunch.results.artifacts import Artifact, checksum, sealed
from freelunch.results.stage import Stage
from freelunch.stages.calibration import make as calibrate
from freelunch.stages.collect import rows_of
from freelunch.stages.dense import make as dense
from freelunch.stages.evaluation import make as evaluate
from freelunch.stages.pruned import make as prune
from freelunch.stages.reconstructed import make as reconstruct
from merging import tensors
from stage_runs import EXECUTION, prepare, run, subjects, tiny_plan, upstream

PLAN = tiny_plan()


def subject(window: str) -> ReconstructedSpec:
    return next(s for s in subjects(PLAN) if isinstance(s, ReconstructedSpec) and s.window == window)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything up to the pruned models of the tiny suite."""
    root = tmp_path_factory.mktemp("prepared")
    prepare(subject("attention_mlp"), root)
    return root


@pytest.fixture
def root(prepared: Path, tmp_path: Path) -> Path:
    shutil.copytree(prepared, tmp_path / "run")
    return tmp_path / "run"


def test_masks_have_the_sparsity_of_the_pattern_in_every_matrix(prepared: Path) -> None:
    spec = subject("block").pruned
    artifact = Artifact(prepared / spec.folder, spec)
    assert artifact.manifest["achieved_sparsity"] == 0.5
    assert len(artifact.manifest["matrix_sparsity"]) == 4 * 7
    for name, packed in tensors(artifact).items():
        columns = 128 if "down_proj" in name else 64
        assert (unpack(packed, columns).sum(1) == columns // 2).all(), name


def test_evaluating_an_overlay_equals_evaluating_the_merged_model(root: Path) -> None:
    spec = subject("attention_mlp")
    recovered, pruned = run(spec, root), Artifact(root / spec.pruned.folder, spec.pruned)
    (item,) = [item for item in PLAN.runs["tiny"] if item.evaluation.subject == spec]
    metrics = json.loads(run(item.evaluation, root).file("metrics.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(root / item.evaluation.base.folder, dtype=torch.bfloat16)
    state = model.state_dict()
    for name, packed in tensors(pruned).items():
        state[name] *= unpack(packed, state[name].shape[1])
    for name, tensor in tensors(recovered).items():
        assert not torch.equal(state[name], tensor) or "norm" in name, name
        state[name].copy_(tensor)
    text = "\n\n".join(
        json.loads(line)["text"] for line in (root / item.evaluation.data[0].folder / "test.jsonl").open()
    )
    tokens = torch.tensor(list(_byte_tokens(root / item.evaluation.base.folder, text))[: 8 * 64]).reshape(8, 64)
    with torch.no_grad():
        logits = model(tokens).logits.float()
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    test = next(metric for metric in metrics if metric["split"] == "test")
    assert test["value"] == pytest.approx(loss.exp().item(), rel=2e-3)


def _byte_tokens(folder: Path, text: str) -> list[int]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)(text)["input_ids"]


@pytest.mark.parametrize("window", ["attention_mlp", "block", 3])
def test_the_cache_budget_does_not_change_a_bit(window: Any, root: Path) -> None:
    spec = subject(window)
    full = tensors(run(spec, root))
    cache = run(spec.pruned.dense, root, max_gib=0.0004)
    assert 2 <= len(cache.manifest["boundaries"]) < 5
    less = tensors(run(spec, root))
    assert full.keys() == less.keys() and all(torch.equal(full[name], less[name]) for name in full)


@pytest.mark.parametrize("stop_after", [1, 2, 5])
def test_an_interrupted_recovery_goes_on_and_ends_with_the_same_bits(
    stop_after: int, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from freelunch.stages import reconstructed as module

    spec, real, calls = subject("attention_mlp"), module.reconstruct_window, []
    uninterrupted = run(spec, root)
    names = [name for name in uninterrupted.files if name.endswith(".safetensors")]  # records hold seconds
    whole = {name: checksum(uninterrupted.file(name)) for name in names}
    shutil.rmtree(root / spec.folder)

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments[1].name)
        if len(calls) > stop_after:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "reconstruct_window", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(spec, root)
    assert not (root / spec.manifest).exists()
    monkeypatch.setattr(module, "reconstruct_window", real)
    again = run(spec, root)
    assert again.manifest["resumed_windows"] == stop_after
    assert {name: checksum(again.file(name)) for name in names} == whole
    assert sorted(path.name for path in again.folder.iterdir()) == sorted([*again.files, "manifest.json"])


@pytest.mark.parametrize("damage", ["truncate data", "truncate record", "swap", "other code"])
def test_damaged_or_stale_windows_are_trained_again(damage: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from freelunch.stages import reconstructed as module

    spec, real, calls = subject("block"), module.reconstruct_window, []

    def counted(*arguments: Any) -> Any:
        calls.append(arguments[1].name)
        if len(calls) == 3 and "done" not in calls:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "reconstruct_window", counted)
    with pytest.raises(KeyboardInterrupt):
        run(spec, root)
    first, second = (root / spec.folder / f"window-00{i}.safetensors" for i in (0, 1))
    if damage == "truncate data":
        first.write_bytes(first.read_bytes()[:-8])
    elif damage == "truncate record":
        first.with_suffix(".json").write_text('{"win')
    elif damage == "swap":
        kept = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(kept)
    calls.clear()
    calls.append("done")
    run(spec, root, code="edited" if damage == "other code" else "code")
    trained = {"truncate data": 3, "truncate record": 3, "swap": 4, "other code": 4}[damage]
    assert len(calls) - 1 == trained


def test_swapped_masks_are_noticed_and_named(root: Path) -> None:
    spec = subject("block")
    one, other = (root / spec.pruned.folder / f"masks-00{i}.safetensors" for i in (0, 1))
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    with pytest.raises(FreelunchError, match=r"masks-000.safetensors: its contents are not what the manifest says"):
        run(spec, root)


def test_a_result_in_the_place_of_another_is_noticed(root: Path) -> None:
    spec = subject("block")
    other = next(s for s in PLAN.specs.values() if isinstance(s, PrunedSpec) and s != spec.pruned)
    shutil.copy(root / spec.pruned.manifest, root / spec.pruned.folder / "kept")
    manifest = json.loads((root / spec.pruned.manifest).read_text())
    (root / spec.pruned.manifest).write_text(json.dumps(manifest | {"key": other.key}))
    with pytest.raises(FreelunchError, match=f"is the manifest of key {other.key}, not of {spec.pruned.key}"):
        run(spec, root)


def test_nan_weights_stop_the_dense_pass_with_the_block(root: Path) -> None:
    spec = subject("block").pruned.dense
    folder = root / spec.calibration.model.folder
    state = load_file(folder / "model.safetensors")
    state["model.layers.2.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    manifest = json.loads((folder / "manifest.json").read_text())
    size = (folder / "model.safetensors").stat().st_size
    manifest["files"]["model.safetensors"] = {"bytes": size, "sha256": checksum(folder / "model.safetensors")}
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))
    with pytest.raises(FreelunchError, match="dense calibration states at block boundary 3: hidden states contain NaN"):
        run(spec, root)
    assert not (root / spec.manifest).exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if not made or made.returncode:
        pytest.skip("a small file system can only be mounted by root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("stage", ["calibration", "dense", "pruned", "reconstructed", "evaluation"])
def test_a_full_disk_is_one_line_and_leaves_no_half_result(stage: str, prepared: Path, small_disk: Path) -> None:
    spec = subject("block")
    target: Spec = {"calibration": spec.pruned.dense.calibration, "dense": spec.pruned.dense, "pruned": spec.pruned,
                    "reconstructed": spec, "evaluation": _evaluation(spec)}[stage]  # fmt: skip
    needed = [above for above in upstream(target) if above.stage != "reconstructed"]
    for above in needed:
        (small_disk / above.folder).parent.mkdir(parents=True, exist_ok=True)
        (small_disk / above.folder).symlink_to(prepared / above.folder)
    if stage == "evaluation":
        (small_disk / spec.folder).parent.mkdir(parents=True, exist_ok=True)
        scratch = prepared.parent / "recovered-elsewhere"
        if not scratch.exists():
            shutil.copytree(prepared, scratch)
            run(spec, scratch)
        (small_disk / spec.folder).symlink_to(scratch / spec.folder)
    stage_run = Stage(target, small_disk, EXECUTION, "code")
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "filler").write_bytes(b"\0" * (free - 4096))
    with pytest.raises(FreelunchError, match="No space left on device"), stage_run.computing():
        if stage == "dense":
            dense(stage_run)
        else:
            stages = {
                "calibration": calibrate, "pruned": prune, "reconstructed": reconstruct, "evaluation": evaluate,
            }  # fmt: skip
            stages[stage](stage_run)
    left = [path.name for path in (small_disk / target.folder).iterdir()]
    assert "manifest.json" not in left and not [name for name in left if name.endswith(".part")]
    (small_disk / "filler").unlink()


def _evaluation(spec: ReconstructedSpec) -> EvaluationSpec:
    return next(item.evaluation for item in PLAN.runs["tiny"] if item.evaluation.subject == spec)


def test_rows_carry_the_whole_protocol(root: Path) -> None:
    spec = subject("block")
    run(spec, root)
    run(_evaluation(spec), root)
    rows = list(rows_of("tiny", _evaluation(spec), root))
    assert {row["metric"] for row in rows} == {"ppl@64", "matrix_sparsity", "validation_loss", "best_validation_loss"}
    (test,) = [row for row in rows if row["metric"] == "ppl@64" and row["split"] == "test"]
    expected = {
        "criterion": "wanda", "pattern": "50%", "sparsity": 0.5, "achieved_sparsity": 0.5, "recovery": "reconstruct",
        "window": "block", "flow": "dense", "training_tokens": 16 * 64, "calibration_tokens": 16 * 64, "epochs": 1,
        "learning_rate": "0.001", "parametrization": "full + biases + norms", "targets": "all", "loss": "mse",
        "model_revision": "seed 0", "length": 64, "dataset": "documents",
    }  # fmt: skip
    assert {key: test[key] for key in expected} == expected
    model = json.loads((root / _evaluation(spec).base.manifest).read_text(encoding="utf-8"))
    assert test["parameters"] == model["parameters"] > 64 * 320
    assert test["seconds"] > 0 and test["peak_gib"] > 0 and "torch 2.13.0" in test["versions"]
