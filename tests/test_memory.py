"""Predicted memory: where it lies, what it depends on, and that the page of sizes is what the command prints."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks.pruning import EIGHT_B
from benchmarks.runs import pruned_from, random_model
from freelunch.__main__ import load, main
from freelunch.capacity import GPUS, HOSTS, USABLE, peaks, tables
from freelunch.costs import Peak, cost, memory
from freelunch.costs.memory import machine
from freelunch.costs.memory.machine import machine_of
from freelunch.costs.memory.peak import ACCELERATOR, Phase, peak
from freelunch.errors import FreelunchError
from freelunch.plan.config import Config, ExecutionConfig, PerplexityTask, ZeroShotTask
from freelunch.plan.spec import Spec
from freelunch.plan.specs import CalibrationSpec, DataSpec, DenseSpec, EvaluationSpec, GramsSpec, ReconstructedSpec

ROOT = Path(__file__).parents[1]
GIB = 2**30
TEXTS: Any = {"path": "texts.jsonl", "splits": {"calibration": 0.5, "validation": 0.25, "test": 0.25}}


@cache
def config() -> Config:
    return load([ROOT / "config.yaml"]).config


@cache
def demo() -> ReconstructedSpec:
    runs = load([ROOT / "config.yaml"]).runs["demo"]
    return next(run.evaluation.subject for run in runs if isinstance(run.evaluation.subject, ReconstructedSpec))


def stages(depth: int = 4, sequences: int = 16) -> dict[str, Spec]:
    """Of a model with the widths of an 8B."""
    data = DataSpec.model_validate({"data": "texts", "source": TEXTS})
    calibration = CalibrationSpec(
        model=random_model(EIGHT_B, depth), data=data, sequences=sequences, validation_sequences=8, length=256,
        sampling="packed", seed=0,
    )  # fmt: skip
    dense = DenseSpec(calibration=calibration)
    pruned = pruned_from(dense, "wanda", "2:4")
    windows = {
        str(name): demo().changed(pruned=pruned, dense=dense, window=name)
        for name in ("matrix", "key_up", "attention_mlp", "block", 2)
    }
    task = PerplexityTask(data="texts", splits=("test",), length=256, sequences=16)
    asked = ZeroShotTask(metric="zero_shot", tasks=("article_last_word",))
    return {
        "dense": dense,
        "grams": GramsSpec(dense=dense),
        "wanda": pruned,
        "sparsegpt": pruned_from(dense, "sparsegpt", "2:4"),
        **windows,
        "perplexity": EvaluationSpec(subject=pruned, data=(data,), tasks=(task,)),
        "zero-shot": EvaluationSpec(subject=pruned, data=(), tasks=(asked,)),
    }


def peaks_of(specs: dict[str, Spec], **execution: Any) -> dict[str, Peak]:
    models = {spec.model: spec.source for spec in (random_model(EIGHT_B, depth) for depth in (4, 8, 16))}
    settings = config().execution.model_copy(update={"device": "cpu", "zero_shot": "streaming"} | execution)
    placed = config().model_copy(update={"models": models, "execution": settings})
    return {name: memory(placed, spec) for name, spec in specs.items()}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_memory_is_flat_in_depth_and_in_calibration_tokens(device: str) -> None:
    plain = peaks_of(stages(), device=device)
    for depth in (8, 16):
        assert peaks_of(stages(depth), device=device) == plain
    more = peaks_of(stages(sequences=64), device=device)
    for name, each in more.items():
        assert (each.host, each.device) == (plain[name].host, plain[name].device), name
    # of files of hidden states more is mapped, where a stage reads some
    assert more["dense"].mapped > plain["dense"].mapped and more["wanda"].mapped == 0


def test_windows_take_more_the_larger_they_are_and_on_a_gpu_their_host_does_not() -> None:
    order = ["matrix", "attention_mlp", "block", "2"]
    for device, attribute in (("cpu", "host"), ("cuda", "device")):
        found = peaks_of(stages(), device=device)
        sizes = [getattr(found[name], attribute) for name in order]
        assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes)
        # twice the weights of a block in training, beside a process that stays
        assert sizes[3] - sizes[2] > 17 * EIGHT_B.block_parameters
    found = peaks_of(stages(), device="cuda")
    assert len({found[name].host for name in order}) == 1


def test_a_window_in_training_takes_what_its_parts_add_up_to() -> None:
    found = peaks_of({"block": stages()["block"]}, device="cpu", products="float32")["block"].host
    # float32 weights and two moments, mask, best state and the one at hand in 16 bits, and what is validated of it
    weights = EIGHT_B.block_parameters * (4 + 8 + 1 + 2 + 2 + 4)
    assert weights < found - GIB / 2 < 1.25 * weights


def test_reading_the_embedding_is_the_peak_of_streaming_few_tokens() -> None:
    found = peaks_of(stages(), device="cpu", products="float32", stream_tokens=256)
    embedding = EIGHT_B.vocab_size * EIGHT_B.hidden_size * (2 + 4)
    for name in ("dense", "perplexity"):
        assert embedding < found[name].host - GIB / 2 < 1.1 * embedding


def test_products_of_float32_take_more_than_those_of_16_bits() -> None:
    fast, slow = (peaks_of(stages(), device="cuda", products=products) for products in ("auto", "float32"))
    for name in ("dense", "grams", "perplexity", "zero-shot"):
        assert slow[name].device > fast[name].device, name
    assert slow["wanda"] == fast["wanda"]


def test_a_cpu_holds_at_once_what_a_gpu_and_its_host_share() -> None:
    phases = [Phase(3.0, 4.0), Phase(5.0, 1.0)]
    on_cpu, on_gpu = (
        peak(machine_of(ExecutionConfig(device=device)), 10.0, phases, 2.0)  # type: ignore[arg-type]
        for device in ("cpu", "cuda")
    )
    assert on_cpu == Peak(17.0, 0.0, 2.0)
    assert on_gpu == Peak(14.0 + ACCELERATOR, 5.0, 2.0)
    assert on_cpu.beside(on_gpu) == Peak(14.0 + ACCELERATOR, 5.0, 2.0)


def test_a_machine_is_known_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "visible", lambda environment: ["0"])
    assert machine_of(ExecutionConfig(device="auto")).accelerator
    assert not machine_of(ExecutionConfig(device="cpu")).accelerator
    monkeypatch.setattr(machine, "visible", lambda environment: [])
    assert not machine_of(ExecutionConfig(device="auto")).accelerator
    assert machine_of(ExecutionConfig(device="cuda")).products == {"bfloat16": 2, "float16": 2, "float32": 4}
    assert set(machine_of(ExecutionConfig(device="cuda", products="float32")).products.values()) == {4}
    flags = tmp_path / "cpuinfo"
    for text, fast in (
        ("flags : fpu avx2", {"float32"}),
        ("flags : fpu avx512_bf16 avx2", {"float32", "bfloat16"}),
        ("Features : fp asimdhp bf16", {"float32", "bfloat16", "float16"}),
    ):
        flags.write_text(text)
        machine._fast.cache_clear()
        assert machine._fast(flags) == fast
    assert machine._fast(tmp_path / "none") == {"float32"}


def test_the_plan_knows_of_this_cpu_what_torch_does() -> None:
    import torch

    from freelunch.device import DTYPES, products

    machine._fast.cache_clear()
    found = machine_of(ExecutionConfig(device="cpu")).products
    assert found == {name: products(dtype, torch.device("cpu")).itemsize for name, dtype in DTYPES.items()}


def test_a_job_asks_for_the_memory_of_its_host() -> None:
    plan = load([ROOT / "config.yaml"])
    for spec in plan.specs.values():
        assert cost(plan.config, spec).memory == memory(plan.config, spec).host > 0


# --- what fits -------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_named() -> None:
    size, host = GPUS[0] * USABLE * GIB, HOSTS[0] * USABLE * GIB
    lines = tables({"small": {"a": Peak(host, size)}, "large": {"a": Peak(host + 1, size + 1)}}).splitlines()
    assert f"| small | {size / GIB:.1f} + {host / GIB:.1f} |" in lines
    assert f"| GPU of {GPUS[0]} GB | all but large |" in lines and f"| GPU of {GPUS[1]} GB | all |" in lines
    assert f"| host of {HOSTS[0]} GB | all but large |" in lines and f"| host of {HOSTS[1]} GB | all |" in lines


def test_models_and_suites_that_are_not_there_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FreelunchError, match=r"^model: .*llama-3.1-8b"):
        peaks(config(), "paper", ["llama-3.1-8"])
    assert main(["--config", str(ROOT / "config.yaml"), "memory", "papr"]) == 1
    assert "there is no suite 'papr'" in capsys.readouterr().err


def test_the_page_on_memory_has_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    (line,) = (line for line in page.splitlines() if line.startswith("python -m freelunch memory "))
    assert main(["--config", str(ROOT / "config.yaml"), *line.split()[3:]]) == 0
    assert capsys.readouterr().out.strip() in page
