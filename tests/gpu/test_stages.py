"""Every stage on the accelerator gives what it gives on the CPU, from the same inputs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from freelunch.plan.config import ExecutionConfig
from freelunch.plan.spec import STAGES, Spec
from freelunch.plan.specs import EvaluationSpec
from one_of_each import above, one_of_each
from stage_runs import run, upstream
from tiny import FAMILIES

SHAPE = {"vocab_size": 320, "num_hidden_layers": 2}
CASES = [(family, "float32") for family in ("llama", "qwen3", "gemma2", "phi3", "opt")] + [
    ("llama", "bfloat16"), ("llama", "float16"),
]  # fmt: skip
TOLERANCE = {"float32": 2e-3, "float16": 2e-2, "bfloat16": 6e-2}
"""Largest relative difference of a tensor's norm and of a metric: products are added up in another order."""
DIFFERENT = {"float32": 2e-3, "float16": 1e-2, "bfloat16": 4e-2}
"""Largest share of a mask's bits that may differ: scores that are nearly equal."""
VARY = {
    "peak_gib", "peak_device_gib", "digest", "files", "finished", "inputs", "sealed", "execution", "versions", "device",
    "threads", "cpus", "products", "best_step",
}  # fmt: skip
"""What manifests say, beside seconds, of when and where; and which of nearly equal losses is the least."""
VISION = {"images", "classifiers", "sparse_classifiers"}


def specs_of(family: str, dtype: str) -> dict[str, Spec]:
    shape = FAMILIES[family] | SHAPE | {"model_type": family}
    specs = one_of_each(shape, dtype)
    evaluation = specs["evaluation"]
    if find_spec("lm_eval") is None:
        assert isinstance(evaluation, EvaluationSpec)
        specs["evaluation"] = evaluation.changed(
            tasks=evaluation.tasks[:1], data=tuple(each for each in evaluation.data if each.stage == "data")
        )
    if (family, dtype) != CASES[0] or find_spec("PIL") is None:
        specs = {stage: spec for stage, spec in specs.items() if stage not in VISION}
    return specs


def execution_on(device: str, **changes: Any) -> ExecutionConfig:
    return ExecutionConfig(device=device, stream_tokens=128, shards=2, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Spec], Path]:
    """The dtype, a spec of every stage, and a directory with their results of the CPU."""
    family, dtype = request.param
    specs, root = specs_of(family, dtype), tmp_path_factory.mktemp(family)
    for spec in specs.values():
        for each in [*upstream(spec), *above(spec), spec]:
            if not (root / each.manifest).exists():
                run(each, root, execution_on("cpu"))
    return dtype, specs, root


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_gives_what_it_gives_on_the_cpu(
    stage: str, case: tuple[str, dict[str, Spec], Path], device: str, tmp_path: Path
) -> None:
    dtype, specs, root = case
    if stage not in specs:
        pytest.skip("one language model is enough for the classifiers, and they need pillow")
    spec = specs[stage]
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)  # export looks for an evaluation beside what it builds on
    shutil.rmtree(tmp_path / spec.folder)
    made = run(spec, tmp_path, execution_on(device))
    expected = root / spec.folder
    names = {path.relative_to(expected) for path in expected.rglob("*") if path.is_file()}
    assert names == {path.relative_to(made.folder) for path in made.folder.rglob("*") if path.is_file()}
    for name in sorted(names):
        for difference in differences(made.folder / name, expected / name, dtype):
            raise AssertionError(f"{name}: {difference}")


def differences(one: Path, other: Path, dtype: str) -> Iterator[str]:
    """What differs between two files of a result by more than the order of sums explains."""
    if one.suffix == ".safetensors":
        tensors, expected = load_file(one), load_file(other)
        if tensors.keys() != expected.keys():
            yield f"{sorted(tensors.keys() ^ expected.keys())} in one alone"
        for name, tensor in tensors.items():
            yield from (f"{name}: {what}" for what in tensor_differences(tensor, expected[name], dtype))
    elif one.suffix == ".json":
        values = zip(_numbers(json.loads(one.read_text())), _numbers(json.loads(other.read_text())), strict=True)
        for (place, value), (_, wanted) in values:
            if not math.isclose(value, wanted, rel_tol=TOLERANCE[dtype], abs_tol=1e-4):
                yield f"{place} is {value}, not {wanted}"
    elif one.suffix != ".md" and one.read_bytes() != other.read_bytes():  # the card of an export says where it was made
        yield "other bytes"


def tensor_differences(tensor: torch.Tensor, expected: torch.Tensor, dtype: str) -> Iterator[str]:
    if (tensor.shape, tensor.dtype) != (expected.shape, expected.dtype):
        yield f"{list(tensor.shape)} {tensor.dtype}, not {list(expected.shape)} {expected.dtype}"
    elif tensor.dtype == torch.uint8:
        bits = torch.tensor([value.bit_count() for value in (tensor ^ expected).flatten().tolist()]).sum().item()
        if bits > max(2, DIFFERENT[dtype] * 8 * tensor.numel()):
            yield f"{bits} of {8 * tensor.numel()} bits differ"
    elif tensor.dtype.is_floating_point:
        error = (tensor.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-9)
        if not error <= TOLERANCE[dtype]:
            yield f"relative difference {error:.1e}"
    elif not torch.equal(tensor, expected):
        yield "other numbers"


def _numbers(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of a JSON value but those under ``VARY``, with their places."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in VARY and "seconds" not in key:
                yield from _numbers(inner, f"{place}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _numbers(inner, f"{place}[{index}]")
    elif isinstance(value, int | float):
        yield place, float(value)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_wrong_result_shows(dtype: str, device: str, tmp_path: Path) -> None:
    weight = torch.randn(16, 24, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    mask = torch.randint(0, 256, (256,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    wrong = [
        (weight, weight * 1.2), (weight, weight.roll(1)), (weight, weight * float("nan")), (mask, mask.roll(1)),
        (weight, weight.T.contiguous()), (torch.arange(4), torch.arange(4) + 1),
    ]  # fmt: skip
    for right, other in wrong:
        assert list(tensor_differences(other.to(device).cpu(), right, dtype))
        assert not list(tensor_differences(right.to(device).cpu(), right, dtype))
    for name, value in (
        ("one", {"value": 3.0, "seconds": 1}),
        ("same", {"value": 3.0, "seconds": 2}),
        ("other", {"value": 4.0}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    assert list(differences(tmp_path / "one.json", tmp_path / "other.json", dtype))
    assert not list(differences(tmp_path / "one.json", tmp_path / "same.json", dtype))
