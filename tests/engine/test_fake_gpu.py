"""The package on a second device (see ``fake_gpu``): the numbers of the CPU, nothing on the wrong device, few waits."""

from __future__ import annotations

import gc
import math
import re
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fake_gpu
from fake_gpu import MEMORY, GpuTensor, Watch, watched
from freelunch.costs import cost
from freelunch.engine.blocks import matrices
from freelunch.engine.overlays import InMemory
from freelunch.engine.states import States, advance, forward
from freelunch.engine.streaming import Network
from freelunch.errors import FreelunchError
from freelunch.evaluate.perplexity import perplexities
from freelunch.job import foreseen
from freelunch.plan.spec import STAGES
from freelunch.plan.specs import Training
from freelunch.pruning import statistics
from freelunch.pruning.statistics import Collector
from freelunch.recover.flows import FLOWS
from freelunch.recover.reconstruct import reconstruct_window
from freelunch.recover.retrain import retrain
from freelunch.recover.windows import BlockMatrices, tile
from freelunch.results.artifacts import read_json
from freelunch.results.stage import explained, out_of_memory
from freelunch.runner import Runner
from one_of_each import SHARDED, SPECS, above, small_config
from stage_runs import EXECUTION, run, tiny_plan, upstream
from tiny import FAMILIES, random_model, random_tokens

UNSEEN = {"models", "data", "questions", "calibration", "images", "exported"}
"""Stages that compute nothing on a device."""
EXACT = EXECUTION.model_copy(update={"products": "float32"})


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    return fake_gpu.use(monkeypatch)


def same_results(one: Path, other: Path) -> None:
    """Raise where two results differ by more than rounding.

    Autocast rounds other operations than on the CPU, and AdamW moves a weight whose gradient is all rounding by up to
    the learning rate.
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
        lambda: here + there, lambda: here @ there, lambda: there[here.long()], lambda: there.mul_(here[0, 0]),
        lambda: here.index_select(0, there[0].long()), lambda: torch.stack([here[0, 0], there[0, 0]]),
        lambda: there[0, 0].add_(here[0, 0]), lambda: here.normal_(generator=torch.Generator()),
        lambda: torch.nn.functional.linear(here, there), lambda: here.addmm_(here, there),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="device"):
            mixed()
    for allowed in (
        here + there[0, 0],
        here[torch.tensor([0, 1])],
        torch.where(here > 0, here, there[0, 0]),
        here.mul_(there.sum()),
    ):
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


def redone(stage: str, made: Path, root: Path) -> Watch:
    """What is counted while a stage runs on the device, on what those before it made on the CPU."""
    spec = SPECS[stage]
    for each in [*upstream(spec), *above(spec)]:
        if not (root / each.folder).exists():
            shutil.copytree(made / each.folder, root / each.folder)
    with watched() as watch:
        run(spec, root, SHARDED)
    same_results(made / spec.folder, root / spec.folder)
    return watch


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in UNSEEN])
def test_every_stage_computes_there_what_it_computes_on_the_cpu(
    stage: str, gpu: torch.device, made: Path, tmp_path: Path
) -> None:
    assert redone(stage, made, tmp_path).peak > 0


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device has no room for a Gram matrix, of which it computes 20 columns at a time."""
    monkeypatch.setattr(statistics, "_fits", lambda columns, device: False)
    monkeypatch.setattr(statistics, "_PANEL", 20)


@pytest.mark.parametrize("stage", ["grams", "pruned", "repaired"])
def test_what_needs_gram_matrices_runs_where_they_have_room(
    stage: str, gpu: torch.device, no_room: None, made: Path, tmp_path: Path
) -> None:
    assert (redone(stage, made, tmp_path).peak > 0) == (stage == "grams")


METHODS: list[tuple[str, dict[str, Any]]] = [
    ("opt", {"criterion": "magnitude", "pattern": "50% global", "recovery": "repair", "repair": "channel"}),
    ("mistral", {"criterion": "random", "pattern": "50% per matrix", "allocation": "erk", "window": "key_up",
                 "loss": "cosine", "optimizer": "sgd"}),
    ("qwen3", {"criterion": "ria", "pattern": "50%", "allocation": "owl", "refinement": "dsnot + bias",
               "window": "matrix", "parametrization": "scale_lora + biases(add=1)"}),
    ("gemma2", {"criterion": "wanda", "pattern": "2:4", "refinement": "admm", "window": 2, "flow": "sparse_dense",
                "parametrization": "spp + norms"}),
    ("phi3", {"criterion": "wanda", "pattern": "50% global", "refinement": "exact", "recovery": "retrain",
              "parametrization": "lora_prune", "patience": 1}),
    ("opt", {"criterion": "sparsegpt", "pattern": "50%", "allocation": "lamp", "window": "matrix_exact",
             "parametrization": "full + biases(add=1)"}),
    ("gemma2", {"criterion": "wanda", "pattern": "50%", "allocation": "repairability", "window": "attention_mlp",
                "flow": "sparse_local", "learning_rate": "auto"}),
    ("llama", {"criterion": "flap", "pattern": "25% structured", "refinement": "bias", "recovery": "none"}),
    ("llama", {"criterion": "flap", "pattern": "25% structured global", "prune_inputs": "sparse", "recovery": "none"}),
    ("llama", {"criterion": "wanda", "pattern": "2:4", "window": "matrix", "flow": "official_matrix", "clip": 1.0}),
    ("qwen3", {"criterion": "sparsegpt", "pattern": "2:4", "window": "block", "prune_inputs": "recovered"}),
]  # fmt: skip
"""Every option once at least, each on one family."""


@pytest.mark.parametrize(("family", "axes"), METHODS, ids=lambda value: "-".join(map(str, value.values()))
                         if isinstance(value, dict) else value)  # fmt: skip
def test_every_method_and_family_computes_there_what_it_computes_on_the_cpu(
    family: str, axes: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if axes.get("window") == "matrix_exact":  # whose Gram matrices come from the host
        request.getfixturevalue("no_room")
    raw = small_config()
    if family != "llama":
        sizes = {"model_type": family, "vocab_size": 320, "num_hidden_layers": 2, "max_position_embeddings": 128}
        raw["models"]["tiny"]["random"]["config"] = FAMILIES[family] | sizes
    raw["suites"]["tiny"]["runs"] = [axes]
    text = {"data": "documents", "length": 24, "sequences": 4}
    raw["suites"]["tiny"]["evaluate"] = [text, text | {"metric": "drift"}]
    (*_, planned) = tiny_plan(raw).runs["tiny"]
    specs = [*upstream(planned.evaluation), planned.evaluation]
    roots = [tmp_path / "cpu", tmp_path / "gpu"]
    for root in roots:
        root.mkdir()
        if root.name == "gpu":
            fake_gpu.use(monkeypatch)
        # without autocast the kernels are the same, and what differs is a mistake
        for spec in specs:
            if spec.stage in UNSEEN and root.name == "gpu":
                shutil.copytree(roots[0] / spec.folder, root / spec.folder)
            else:
                run(spec, root, EXACT)
    for spec in specs:
        same_results(*(root / spec.folder for root in roots))


# --- memory that is full ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "lower"),
    [
        ("dense", "lower execution.stream_tokens (128)"),
        ("pruned", "which no setting makes smaller"),
        ("shards", "raise accumulation (1) up to batch_size (2), or lower batch_size or length (24), or take a smaller "
                   "window than block, or lower execution.stream_tokens (128)"),
        ("retrained", "batch_size (2), or lower batch_size or length (24), or train less than parametrization full"),
        ("evaluation", "lower execution.stream_tokens (128), or set execution.zero_shot: streaming"),
        ("classifiers", "lower classifiers.tiny.batch_size (8)"),
        ("sparse_classifiers", "or calibration_images (8)"),
    ],
)  # fmt: skip
def test_a_gpu_that_is_full_is_one_line_that_says_what_to_lower(
    stage: str, lower: str, gpu: torch.device, made: Path, tmp_path: Path
) -> None:
    spec = SPECS[stage]
    for each in [*upstream(spec), *above(spec)]:
        if not (tmp_path / each.folder).exists():
            shutil.copytree(made / each.folder, tmp_path / each.folder)
    runner = Runner(tmp_path, SHARDED, 1.0)
    full = r"the GPU's memory is full: [\d.]+ MiB more were asked for, of [\d.]+ MiB in all"
    with watched(capacity=20_000), pytest.raises(FreelunchError) as failure:
        runner.need(spec)
    assert re.match(f"{stage} {re.escape(spec.name)}: {full}; ", str(failure.value)) and lower in str(failure.value)
    assert foreseen(failure.value) == str(failure.value) and "\n" not in str(failure.value)
    if stage == "dense":  # nothing is in the way of a second try
        same_results(made / spec.folder, runner.need(spec).folder)


def test_a_library_of_cuda_that_finds_no_memory_is_told_from_defects() -> None:
    """What torch says on CUDA, where it says how much is free, and what cuBLAS has it say."""
    spec = SPECS["dense"]
    text = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.17 GiB is"
    )
    failure = explained(spec, EXECUTION, torch.OutOfMemoryError(f"{text} free."))
    assert "2.00 GiB more were asked for, of 79.10 GiB 1.17 GiB are free; " in str(failure)
    library = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    assert out_of_memory(library) and "CUBLAS_STATUS_ALLOC_FAILED" in str(explained(spec, EXECUTION, library))
    assert not out_of_memory(RuntimeError("shapes do not match")) and not out_of_memory(
        ValueError("_STATUS_ALLOC_FAILED")
    )


def test_the_plan_predicts_the_memory_of_a_gpu(gpu: torch.device, tmp_path: Path) -> None:
    """Of a model that is wide for its sequences, so that weights count most.

    At least what is counted, but for batches that are copied up ahead of a streamed block, which no formula has (3 %
    here, less of wider models). At most twice as much: criteria are taken to need what the hungriest of them does.
    """
    raw = small_config()
    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 8}
    raw["models"]["tiny"]["random"]["config"] |= sizes | {"num_key_value_heads": 4}
    suite = raw["suites"]["tiny"]
    suite["defaults"] |= {"sequences": 4, "validation_sequences": 4, "length": 32}
    suite["runs"] = [
        {"criterion": "wanda", "pattern": "2:4", "window": "block"},
        {"criterion": "wanda", "pattern": "2:4", "recovery": "retrain", "loss": "kl"},
        {"criterion": "sparsegpt", "pattern": "50%", "recovery": "none"},
    ]  # fmt: skip
    suite["evaluate"] = [{"data": "documents", "length": 32, "sequences": 4, "splits": ["test"]}]
    plan, execution = tiny_plan(raw), EXECUTION.model_copy(update={"device": "cuda"})
    config = plan.config.model_copy(update={"execution": execution})
    gc.collect()
    runner, ratios, before = Runner(tmp_path, execution, 1.0), {}, MEMORY.live
    evaluations = [planned.evaluation for planned in plan.runs["tiny"]]
    for spec in [each for evaluation in evaluations for each in upstream(evaluation)] + evaluations[-1:]:
        with watched() as watch:
            runner.need(spec)
        if watch.peak:
            ratios[f"{spec.stage} {spec.label}"] = cost(spec, config).device / watch.peak
        # a stage leaves nothing behind, and Python looks after its garbage as before
        assert MEMORY.live == before and gc.get_freeze_count() == 0, spec.label
    assert len(ratios) == 7 and all(0.95 < ratio < 2 for ratio in ratios.values()), ratios


# --- waits -----------------------------------------------------------------------------------------------------------


def network(dtype: torch.dtype = torch.bfloat16) -> Network:
    model = random_model("llama", dtype=dtype)
    return Network(model.config, InMemory(dict(model.state_dict())), dtype, fake_gpu.NAME)


@cache
def shapes() -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in random_model("llama").named_parameters()}


def mask_of(name: str) -> torch.Tensor | None:
    shape = shapes()[name]
    return torch.arange(math.prod(shape)).reshape(shape) % 2 == 0 if len(shape) > 1 else None


def reconstruct_steps(window: str, steps: int, folder: Path, **training: Any) -> None:
    """Train a window for some steps, of which each has two batches."""
    student = network()
    states = {
        split: student.embed(random_tokens(count, 12)).cpu()
        for split, count in (("calibration", 2 * steps), ("validation", 3))
    }
    walks = {split: States(student, {0: hidden}, 64, folder) for split, hidden in states.items()}
    inside = [BlockMatrices(tuple(matrices(student.blocks[0])))] * len(student.blocks)
    windows = tile(window, len(student.blocks), inside)
    flow = FLOWS["dense"](walks, student, states, windows, 64, folder)
    settings = Training(batch_size=2, learning_rate=1e-3, accumulation=2, clip=1.0, **training)
    reconstruct_window(flow, windows[1], mask_of, settings)


def retrain_steps(loss: Any, steps: int, folder: Path) -> None:
    whole = network()
    tokens = {"calibration": random_tokens(2 * steps, 12), "validation": random_tokens(3, 12, 1)}
    dense = {split: whole.embed(each).cpu() for split, each in tokens.items()} if loss == "kl" else {}
    retrain(whole, tokens, dense, mask_of, Training(loss=loss, batch_size=2, learning_rate=1e-3))


def pass_of_batches(count: int, folder: Path) -> None:
    """What the dense pass does with a block and so many batches."""
    dense = network()
    hidden = torch.zeros(2 * count, 12, 32, dtype=torch.bfloat16)
    with dense.block(1) as block:
        collector = Collector(matrices(block), gram=True)
        with collector.watching():
            forward(dense, 1, block, "block", None, hidden, torch.empty_like(hidden), 2)
        advance(dense, 1, block, list(hidden.split(2)))
    collector.results()


def head_of_sequences(count: int, folder: Path) -> None:
    """A perplexity of so many sequences, in one batch."""
    perplexities(network(), {"a": random_tokens(count, 12)}, 12 * count)


@pytest.mark.parametrize(
    ("work", "each"),
    [
        (partial(reconstruct_steps, "matrix"), 1),
        (partial(reconstruct_steps, "block"), 1),
        (partial(reconstruct_steps, "attention_mlp", parametrization="mask_lora + norms", loss="cosine"), 1),
        (partial(retrain_steps, "cross_entropy"), 1),
        (partial(retrain_steps, "kl"), 1),
        (pass_of_batches, 0),
        (head_of_sequences, 0),
    ],
    ids=["matrix", "block", "attention_mlp", "cross_entropy", "kl", "dense pass", "perplexity"],
)
def test_a_step_waits_for_its_losses_alone_and_streaming_for_nothing(
    work: Callable[..., None], each: int, gpu: torch.device, tmp_path: Path
) -> None:
    waits = []
    for count in (4, 8):
        with watched() as watch:
            work(count, tmp_path)
        waits.append(watch.waits)
    more = waits[1] - waits[0]
    assert more.total() == 4 * each and waits[0].total() > 0, more
