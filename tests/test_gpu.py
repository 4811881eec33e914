"""The package on a second device (see ``fake_gpu``): the numbers of the CPU, nothing on the wrong device, few waits."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fake_gpu
from fake_gpu import GpuTensor, watched
from freelunch.artifacts import read_json
from freelunch.specs import STAGES, PrunedSpec, Spec
from one_of_each import SHARDED, SPECS, above
from stage_runs import EXECUTION, prepare, run, tiny_config, tiny_plan, upstream

UNSEEN = {"models", "data", "questions", "calibration", "images", "export"}
"""Stages that compute nothing on a device."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    return fake_gpu.use(monkeypatch)


def same_results(one: Path, other: Path) -> None:
    """Raise where two results differ by more than rounding.

    The exact kernels are the same, but autocast rounds other operations than on the CPU, and AdamW moves a weight whose
    gradient is all rounding by up to the learning rate.
    """
    files = sorted(path.name for path in one.iterdir())
    assert files == sorted(path.name for path in other.iterdir())
    for name in files:
        if name.endswith(".safetensors"):
            tensors, others = load_file(one / name), load_file(other / name)
            for key in tensors | others:
                rounding = (tensors[key].double() - others[key].double()).abs()
                small = 1e-3 * (1 + others[key].double().abs())
                assert bool((rounding <= small).all()) and float(rounding.mean() / small.mean()) < 0.02, (name, key)
        elif name == "metrics.json":
            for entry, another in zip(read_json(one / name), read_json(other / name), strict=True):
                numbers = {key: value for key, value in entry.items() if isinstance(value, float)}
                assert numbers == pytest.approx({key: another[key] for key in numbers}, rel=1e-3, nan_ok=True), entry


# --- the device itself -----------------------------------------------------------------------------------------------


def test_the_device_refuses_what_cuda_refuses() -> None:
    here, there = torch.ones(2, 2, device="gpu"), torch.ones(2, 2)
    for mixed in (
        lambda: here + there, lambda: here @ there, lambda: there[here.long()], lambda: here.index_select(0, there[0].long()),
        lambda: torch.stack([here[0, 0], there[0, 0]]), lambda: there.mul_(here[0, 0]), lambda: there[0, 0].add_(here[0, 0]),
        lambda: here.normal_(generator=torch.Generator()), lambda: torch.nn.functional.linear(here, there),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="device"):
            mixed()
    for allowed in (here + there[0, 0], here[torch.tensor([0, 1])], torch.where(here > 0, here, there[0, 0]), here.mul_(there.sum())):
        assert isinstance(allowed, GpuTensor)
    with pytest.raises(RuntimeError, match="numpy"):
        here.numpy()


def test_waits_bytes_and_capacity_are_counted() -> None:
    values = torch.arange(600, dtype=torch.float32).to("gpu")
    with watched() as watch:
        other = values.double() + 1
        views = [other.view(20, 30).T, other[3:], other.detach()]
        assert watch.count == 0 and len(views) == 3
        del other, views
        torch.cat([values, values])
    # 4800 bytes, in granules of 512, of the copy and of the sum; both are gone before the next one
    assert watch.peak == 2 * 5120
    waiting = (
        lambda: values.sum().item(), lambda: bool((values > 0).all()), lambda: values.cpu(), lambda: values.nonzero(),
        lambda: values[values > 3], lambda: torch.equal(values, values), lambda: torch.ones(3).to("gpu"),
        lambda: values.tolist(), lambda: torch.tensor([1.0], device="gpu"), lambda: values[torch.tensor([1])],
    )  # fmt: skip
    for wait in waiting:
        with watched() as watch:
            wait()
        assert watch.count == 1
    with watched(capacity=8192), pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        torch.zeros(4096, device="gpu")


# --- the same numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in UNSEEN])
def test_every_stage_computes_there_what_it_computes_on_the_cpu(
    stage: str, gpu: torch.device, made: Path, tmp_path: Path
) -> None:
    spec = SPECS[stage]
    for each in [*upstream(spec), *above(spec)]:
        if not (tmp_path / each.folder).exists():
            shutil.copytree(made / each.folder, tmp_path / each.folder)
    with watched() as watch:
        run(spec, tmp_path, SHARDED)
    assert watch.peak > 0
    same_results(made / spec.folder, tmp_path / spec.folder)
