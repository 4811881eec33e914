"""Training on the accelerator: the same bits every time where that is asked for, killed or in shards; compiled."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from freelunch.doctor import find_compiler
from freelunch.errors import FreelunchError
from freelunch.plan.config import ExecutionConfig
from freelunch.plan.spec import Spec, parse_spec
from freelunch.plan.specs import ReconstructedSpec
from freelunch.results.artifacts import Artifact, checksum
from freelunch.results.stage import Stage
from freelunch.stages import function_of
from one_of_each import one_of_each
from stage_runs import run, upstream

EPOCHS = 3


def on(device: str, **changes: Any) -> ExecutionConfig:
    return ExecutionConfig(device=device, stream_tokens=128, **changes)  # type: ignore[arg-type]


CASES = [("reconstructed", "float32"), ("retrained", "float32"), ("reconstructed", "bfloat16")]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def prepared(
    request: pytest.FixtureRequest, device: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Spec, Path]:
    """A training, and a directory with all that it builds on, made on the device."""
    stage, dtype = request.param
    spec: Any = one_of_each(dtype=dtype)[stage]
    spec = spec.changed(training=spec.training.model_copy(update={"epochs": EPOCHS}))
    root = tmp_path_factory.mktemp(stage)
    for each in upstream(spec):
        run(each, root, on(device))
    return spec, root


@pytest.fixture
def root(prepared: tuple[Spec, Path], tmp_path: Path) -> Path:
    shutil.copytree(prepared[1], tmp_path, dirs_exist_ok=True)
    return tmp_path


def weights(made: Artifact) -> dict[str, str]:
    """Checksums of the tensors that were trained."""
    return {name: checksum(made.file(name)) for name in made.files if name.endswith(".safetensors")}


def losses(made: Artifact) -> list[float]:
    return [loss for window in made.manifest["windows"] for loss in window["losses"]]


def test_deterministic_training_has_the_same_bits_twice_and_after_a_kill(
    prepared: tuple[Spec, Path], device: str, root: Path
) -> None:
    spec, execution = prepared[0], on(device, deterministic=True)
    first = weights(run(spec, root, execution))
    shutil.rmtree(root / spec.folder)
    assert first and weights(run(spec, root, execution)) == first
    shutil.rmtree(root / spec.folder)
    victim = get_context("spawn").Process(
        target=_die, args=(spec.model_dump(mode="json"), root, execution.model_dump())
    )
    victim.start()
    victim.join()
    assert victim.exitcode == -signal.SIGKILL and not (root / spec.manifest).exists()
    again = run(spec, root, execution)
    assert again.manifest.get("resumed_windows") or again.manifest.get("resumed_at")
    assert weights(again) == first


def _die(spec: dict[str, Any], root: Path, execution: dict[str, Any]) -> None:
    """Train in a process of its own that is killed in its fourth validation: of a second window, or epoch."""
    import torch

    from freelunch.recover.training import Trainer

    torch.set_num_threads(1)  # as in the tests: a result of other threads is not resumed

    validate, calls = Trainer._validate, []

    def dying(self: Any, *arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == EPOCHS + 3 - 2 * (spec["stage"] == "retrained"):
            os.kill(os.getpid(), signal.SIGKILL)
        validate(self, *arguments)

    Trainer._validate = dying  # type: ignore[method-assign]
    run(parse_spec(spec), root, ExecutionConfig.model_validate(execution))


@pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
def test_compiled_training_goes_the_same_way(prepared: tuple[Spec, Path], device: str, root: Path) -> None:
    spec = prepared[0]
    plain = losses(run(spec, root, on(device)))
    shutil.rmtree(root / spec.folder)
    assert plain and losses(run(spec, root, on(device, compile=True))) == pytest.approx(
        plain, rel=2e-2 if spec.base.source.dtype == "bfloat16" else 2e-3
    )


def test_two_shards_side_by_side_are_one_training(prepared: tuple[Spec, Path], device: str, root: Path) -> None:
    spec, execution = prepared[0], on(device, deterministic=True)
    if not isinstance(spec, ReconstructedSpec):
        pytest.skip("only reconstruction has shards")
    whole = weights(run(spec, root, execution))
    shutil.rmtree(root / spec.folder)
    parts = [(shard.model_dump(mode="json"), root, execution.model_dump()) for shard in spec.split(2)]
    shards = [get_context("spawn").Process(target=_shard, args=part) for part in parts]
    for process in shards:
        process.start()
    for process in shards:
        process.join(100)
        process.kill()
    assert [process.exitcode for process in shards] == [0, 0]
    assert weights(run(spec, root, on(device, deterministic=True, shards=2))) == whole


def _shard(spec: dict[str, Any], root: Path, execution: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(1)  # as in the tests: other threads add up in another order
    run(parse_spec(spec), root, ExecutionConfig.model_validate(execution))


def test_running_out_of_memory_is_one_line_that_says_what_to_lower(
    prepared: tuple[Spec, Path], device: str, root: Path
) -> None:
    import torch

    if device == "cpu":
        pytest.skip("the memory of a CPU has no limit of this kind")
    spec, execution = prepared[0], on(device)
    stage = Stage(spec, root, execution, "code")
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        with pytest.raises(FreelunchError, match=r"memory is full: .* batch_size"), stage.computing():
            function_of(spec)(stage)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert weights(run(spec, root, execution))  # the device is as it was
