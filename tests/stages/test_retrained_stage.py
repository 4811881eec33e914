"""Stage ``retrained``: killed anywhere, it ends with the bits of a job that was left alone, and cleans up."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from freelunch.engine.overlays import unpack
from freelunch.errors import FreelunchError
from freelunch.plan.spec import Spec
from freelunch.plan.specs import RetrainedSpec
from freelunch.results import checkpoint as module
from freelunch.results.artifacts import Artifact, checksum
from stage_runs import prepare, run, subjects, tiny_config, tiny_plan

ROOT = Path(__file__).parents[2]
RUNS: dict[str, dict[str, Any]] = {
    "adamw": {"schedule": "cosine", "accumulation": 2},
    "sgd": {"optimizer": "sgd", "learning_rate": 0.3, "clip": 0.5},
    "best early": {"optimizer": "sgd", "learning_rate": 30.0, "schedule": "constant", "patience": 2},
    "kl": {"loss": "kl", "parametrization": "mask_lora(rank=3) + norms", "learning_rate": "auto"},
    "inexact": {"parametrization": "lora_prune(rank=3)", "learning_rate": 0.05},
    "diverging": {"learning_rate": 1e38},
}
STEPS = 9


def make() -> dict[str, RetrainedSpec]:
    raw = tiny_config()
    raw["models"]["tiny"]["random"]["config"] |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    small = {"sequences": 5, "validation_sequences": 3, "length": 24, "batch_size": 2, "epochs": 3}
    raw["suites"]["tiny"]["defaults"] |= small | {"criterion": "wanda", "pattern": "50%", "recovery": "retrain"}
    raw["suites"]["tiny"]["runs"] = list(RUNS.values())
    return dict(zip(RUNS, subjects(tiny_plan(raw)), strict=True))


SPECS = make()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything up to the pruned model and the dense states."""
    root = tmp_path_factory.mktemp("prepared")
    prepare(SPECS["kl"], root)
    return root


@pytest.fixture(scope="module")
def undisturbed(prepared: Path) -> Callable[[str], dict[str, Any]]:
    """What a job gives that is left alone, by the name of the run."""
    found: dict[str, dict[str, Any]] = {}

    def result(name: str) -> dict[str, Any]:
        if name not in found:
            found[name] = facts(run(SPECS[name], prepared))
        return found[name]

    return result


@pytest.fixture
def root(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, in which a checkpoint is due after every step."""
    shutil.copytree(prepared, tmp_path / "run", ignore=shutil.ignore_patterns("retrained"))
    monkeypatch.setattr(module, "SAVED_EVERY", -1.0)
    return tmp_path / "run"


def facts(artifact: Artifact) -> dict[str, Any]:
    """All of a result that another job must give too."""
    manifest = artifact.manifest
    assert sorted(path.name for path in artifact.folder.iterdir()) == sorted([*artifact.files, "manifest.json"])
    assert not any("checkpoint" in name for name in artifact.files)
    window = {key: value for key, value in manifest["windows"][0].items() if key != "seconds"}
    sums = {name: checksum(artifact.file(name)) for name in artifact.files}
    return {"sums": sums, "window": window, "trained": manifest["trainable_parameters"]}


def interrupt(monkeypatch: pytest.MonkeyPatch, spec: Spec, root: Path, saves: int) -> None:
    """Run the stage until it has saved so many checkpoints."""
    real, saved = module.Checkpoint.save, []

    def save(self: Any, tensors: Any, about: Any) -> None:
        real(self, tensors, about)
        saved.append(about["step"])
        if len(saved) == saves:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.Checkpoint, "save", save)
        with pytest.raises(KeyboardInterrupt):
            run(spec, root)
    assert saved == list(range(saved[0], saved[0] + saves))
    left = sorted(path.name for path in (root / spec.folder).iterdir())
    assert left == [f"checkpoint-{saved[-1]}.safetensors", "checkpoint.json"]


def test_the_result_is_an_overlay_of_what_was_trained(prepared: Path, undisturbed: Any) -> None:
    spec = SPECS["adamw"]
    window = undisturbed("adamw")["window"]
    assert window["validation_steps"] == [0, 3, 6, 9] and window["best_loss"] < window["losses"][0]
    assert undisturbed("best early")["window"]["best_step"] == 3
    assert undisturbed("kl")["window"]["chosen_rate"] > 3e-8 and undisturbed("inexact")["window"]["unmerged_loss"]
    artifact, pruned = (Artifact(prepared / each.folder, each) for each in (spec, spec.pruned))
    assert artifact.manifest["training_tokens"] == 3 * 5 * 24 and artifact.manifest["resumed_at"] == 0
    for index in range(2):
        found = load_file(artifact.file(f"window-{index:03d}.safetensors"))
        assert len(found) == 9 and all(name.startswith(f"model.layers.{index}.") for name in found)
        for name, packed in load_file(pruned.file(f"masks-{index:03d}.safetensors")).items():
            mask = unpack(packed, found[name].shape[1])
            assert found[name].dtype == torch.bfloat16 and not found[name][~mask].any()


@pytest.mark.parametrize(("name", "saves"), [
    ("adamw", [4, 3]), ("adamw", [STEPS - 1]), ("sgd", [1]), ("sgd", [6]), ("best early", [5]), ("kl", [1]),
    ("kl", [4, 2]), ("inexact", [7]),
], ids=str)  # fmt: skip
def test_an_interrupted_training_goes_on_and_ends_with_the_same_bits(
    name: str, saves: list[int], root: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for count in saves:
        interrupt(monkeypatch, SPECS[name], root, count)
    again = run(SPECS[name], root)
    assert facts(again) == undisturbed(name)
    assert again.manifest["resumed_at"] == sum(saves)
    assert again.manifest["train_seconds"] > again.manifest["windows"][0]["seconds"]


KILLED = """
import os, signal, sys
from pathlib import Path
import transformers.models.llama.modeling_llama  # once, not in every child
import test_retrained_stage as tests
module = tests.module

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def on_call(count, name, before=lambda *_: None):
    # killed in the count-th call of a function of the checkpoint
    real, calls = getattr(module, name), []
    def patched(*arguments):
        calls.append(name)
        if len(calls) == count:
            before(*arguments)
            die()
        return real(*arguments)
    setattr(module, name, patched)

def half(tensors, path):
    path.write_bytes(bytes(1000))

points = {
    "tensors": lambda: on_call(3, "save_file", half),
    "record": lambda: on_call(3, "write_json"),
    "after": lambda: on_call(4, "save_file"),
}
for name, patch in points.items():
    if os.fork() == 0:
        patch()
        module.SAVED_EVERY = -1.0
        tests.run(tests.SPECS["adamw"], Path(sys.argv[1]) / name)
        os._exit(0)
    print(name, os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_job_killed_while_it_saves_goes_on_from_the_checkpoint_before(
    prepared: Path, tmp_path: Path, undisturbed: Any
) -> None:
    """By SIGKILL: in the middle of the tensors, before the record, and after both."""
    expected = {"tensors": 2, "record": 2, "after": 3}
    for name in expected:
        shutil.copytree(prepared, tmp_path / name, ignore=shutil.ignore_patterns("retrained"))
    paths = os.pathsep.join([str(ROOT / "workflow"), str(ROOT / "tests"), str(Path(__file__).parent)])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", f"import torch; torch.set_num_threads(1)\n{KILLED}", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [word for name in expected for word in (name, str(-signal.SIGKILL))], done.stderr
    for name, step in expected.items():
        assert not (tmp_path / name / SPECS["adamw"].manifest).exists()
        again = run(SPECS["adamw"], tmp_path / name)
        assert again.manifest["resumed_at"] == step, name
        assert facts(again) == undisturbed("adamw"), name


@pytest.mark.parametrize("damage", ["tensors", "a bit", "record", "no file", "other code"])
def test_a_checkpoint_that_cannot_be_trusted_is_ignored(
    damage: str, root: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = SPECS["adamw"]
    interrupt(monkeypatch, spec, root, 4)
    record, data = (root / spec.folder / name for name in ("checkpoint.json", "checkpoint-4.safetensors"))
    kept = data.read_bytes()
    if damage == "tensors":
        data.write_bytes(kept[:-8])
    elif damage == "a bit":
        data.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    elif damage == "record":
        record.write_text(record.read_text()[:-9])
    elif damage == "no file":
        data.unlink()
    with caplog.at_level(logging.INFO):
        again = run(spec, root, code="edited" if damage == "other code" else "code")
    lines = [each.message for each in caplog.records if "checkpoint" in each.message]
    assert lines == ["an earlier checkpoint is damaged or was made by other code; starting again"]
    assert again.manifest["resumed_at"] == 0 and facts(again) == undisturbed("adamw")


def test_a_training_that_diverges_stops_with_one_line_and_leaves_no_manifest(root: Path) -> None:
    spec = SPECS["diverging"]
    for _ in range(2):  # the second goes on after the last checkpoint, to the same end
        with pytest.raises(FreelunchError) as error:
            run(spec, root)
        message = str(error.value)
        assert message.startswith("model, step ") and "loss is" in message and "\n" not in message
        assert not (root / spec.manifest).exists()
        assert all(path.name.startswith("checkpoint") for path in (root / spec.folder).iterdir())
    assert json.loads((root / spec.folder / "checkpoint.json").read_text())["step"] < STEPS
