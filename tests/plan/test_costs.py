"""Predicted costs: against sums by hand for a small model, and what they depend on for one with the widths of an 8B."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks.pruning import EIGHT_B
from benchmarks.runs import pruned_from, random_model
from freelunch.costs import ACCELERATOR, HOLES, NETWORK, PLAIN, SCATTERED, Cost, cost, job
from freelunch.engine.accelerators import fast_dtypes, product_bytes
from freelunch.errors import FreelunchError
from freelunch.plan.config import Config, PerplexityTask, ZeroShotTask, parse_config
from freelunch.plan.facts import Facts
from freelunch.plan.spec import STAGES, Spec
from freelunch.plan.specs import (
    CalibrationSpec,
    DataSpec,
    DenseSpec,
    EvaluationSpec,
    ExportSpec,
    GramsSpec,
    ReconstructedSpec,
    RepairedSpec,
    RetrainedSpec,
    ShardSpec,
    Training,
)
from freelunch.plan.yaml_files import read_yaml

ROOT = Path(__file__).parents[2]
SMALL = Facts(
    model_type="llama", num_hidden_layers=2, hidden_size=8, intermediate_size=16, num_attention_heads=2,
    num_key_value_heads=1, head_dim=4, vocab_size=32, max_position_embeddings=64,
)  # fmt: skip
TRAINING = Training(learning_rate=1e-3, epochs=2, batch_size=2)


@cache
def config() -> Config:
    return parse_config(read_yaml(ROOT / "config.yaml"))


def placed(spec: Spec, facts: Facts = SMALL, depth: int | None = None, **execution: Any) -> Cost:
    """The cost of a spec on a CPU with products of float32, or as ``execution`` says."""
    model = random_model(facts, depth or facts.num_hidden_layers)
    settings = {"device": "cpu", "products": "float32", "stream_tokens": 32, "zero_shot": "streaming"} | execution
    changes = {"models": {model.model: model.source}, "execution": config().execution.model_copy(update=settings)}
    return cost(spec, config().model_copy(update=changes))


def dense_of(facts: Facts = SMALL, depth: int | None = None, sequences: int = 4, length: int = 16) -> DenseSpec:
    source: Any = {"path": "texts.jsonl", "splits": {"calibration": 0.5, "validation": 0.25, "test": 0.25}}
    return DenseSpec(
        calibration=CalibrationSpec(
            model=random_model(facts, depth or facts.num_hidden_layers),
            data=DataSpec.model_validate({"data": "texts", "source": source}),
            sequences=sequences, validation_sequences=2, length=length, sampling="packed", seed=0,
        )
    )  # fmt: skip


def recovered(dense: DenseSpec, window: str | int = "block", **changes: Any) -> ReconstructedSpec:
    pruned = pruned_from(dense, "wanda", "2:4")
    training = TRAINING.model_copy(update=changes)
    return ReconstructedSpec(pruned=pruned, dense=dense, window=window, flow="dense", training=training)


def evaluation(subject: Any, **task: Any) -> EvaluationSpec:
    tasks = (ZeroShotTask(metric="zero_shot", **task) if "tasks" in task else PerplexityTask(data="texts", **task),)
    return EvaluationSpec(subject=subject, data=(), tasks=tasks)


# --- by hand ---------------------------------------------------------------------------------------------------------

WANDA, SPARSEGPT = (pruned_from(dense_of(), criterion, "2:4") for criterion in ("wanda", "sparsegpt"))
# q and o have 8 x 8 weights, k and v 4 x 8, up and gate 16 x 8, down 8 x 16
BLOCK, WEIGHTS, EMBEDDING = 576, 1152, 256
# of a token through both blocks: two for each weight, four for each of 8 channels of 16 tokens
FORWARD = 2 * (2 * 576 + 4 * 8 * 16)
CUBED = 64 * 8 + 2 * 32 * 8 + 64 * 8 + 2 * 128 * 8 + 128 * 16  # rows times squared columns
# 4 steps, validated 3 times and before; 2 validation sequences to 4 that are trained on
PASSES = 3 * 2 + 4 * 2 / 4
TASK: dict[str, Any] = {"splits": ("test",), "length": 16, "sequences": 3}


@pytest.mark.parametrize(
    ("spec", "operations", "disk"),
    [
        (dense_of().calibration.model, 0, 2 * (WEIGHTS + EMBEDDING)),
        (dense_of().calibration.data, 0, 0),
        (dense_of().calibration, 0, 4 * 96),
        (dense_of(), 96 * FORWARD, 3 * 96 * 8 * 2),
        (GramsSpec(dense=dense_of()), 64 * (FORWARD + 2 * 2 * (3 * 64 + 256)), 2 * (3 * 64 + 256) * 4),
        (WANDA, 0, WEIGHTS / 8),
        (SPARSEGPT, 2 * (3 * CUBED + 3 * 8**3 + 16**3), WEIGHTS / 8 + 2 * WEIGHTS),
        (WANDA.changed(prune_inputs="sparse"), 2 * 64 * FORWARD, WEIGHTS / 8),
        (recovered(dense_of()), PASSES * 64 * FORWARD, 2 * WEIGHTS),
        (recovered(dense_of(), "attention_mlp"), PASSES * 64 * FORWARD + 96 * FORWARD, 2 * WEIGHTS),
        (recovered(dense_of(), "matrix").changed(flow="sparse_local"), (PASSES * 64 + 5 * 96) * FORWARD, 2 * WEIGHTS),
        (ShardSpec(reconstructed=recovered(dense_of()), shard=1, shards=4), PASSES * 16 * FORWARD, WEIGHTS / 2),
        (
            RetrainedSpec(pruned=WANDA, calibration=dense_of().calibration, training=TRAINING),
            (PASSES + 2) * 64 * (FORWARD + 2 * EMBEDDING),  # activations are computed twice
            2 * WEIGHTS,
        ),
        (RepairedSpec(pruned=WANDA, repair="layer"), 2 * 4 * CUBED, 2 * WEIGHTS),
        (evaluation(WANDA, **TASK), 48 * (FORWARD + 2 * EMBEDDING), 0),
        (ExportSpec(subject=WANDA), 0, 2 * (WEIGHTS + EMBEDDING)),
    ],
    ids=lambda value: value.stage if isinstance(value, Spec) else "",
)
def test_operations_and_disk_are_those_counted_by_hand(spec: Spec, operations: float, disk: float) -> None:
    found = placed(spec)
    assert (found.operations, found.disk) == pytest.approx((operations, disk))


WRITTEN = BLOCK / 8 + 2 * BLOCK  # masks and changed weights of a block
# of the 32 tokens of a batch: three of the MLP's width and six of the states', as computed
BATCH = 32 * (3 * 16 + 6 * 8)


@pytest.mark.parametrize(
    ("spec", "process", "device", "host"),
    [
        # the largest matrix is 8 x 16: 30 bytes a weight, or its Gram matrix and three factors and 8 bytes a weight
        (WANDA, PLAIN, 30 * 128, BLOCK / 8),
        (SPARSEGPT, PLAIN, 22 * 16**2 + 8 * 128, WRITTEN),
        (dense_of(), NETWORK + HOLES, 4 * BLOCK + 32 * ((4 + 16) * 16 + 6 * 8 * 4), 0),
        # weights, moments, gradients, mask and best state; activations, inputs and targets of a step of 32 tokens
        (
            recovered(dense_of()),
            NETWORK + HOLES,
            SCATTERED * BLOCK * (4 + 8 + 4 + 1 + 2) + 32 * (16 * 16 + 40 * 8 + 12 * 16 + 16 * 8),
            0,
        ),
        (RepairedSpec(pruned=WANDA, repair="layer"), NETWORK, 16 * 128 + 16 * 16**2, 2 * (BLOCK + 2 * 128)),
        # the block is the peak, and the states of all windows are there
        (evaluation(WANDA, **TASK), NETWORK, 4 * BLOCK + 4 * BATCH, 48 * 8 * 4),
    ],
    ids=lambda value: value.stage if isinstance(value, Spec) else "",
)
def test_memory_is_that_summed_by_hand(spec: Spec, process: int, device: float, host: float) -> None:
    assert placed(spec).host - process == pytest.approx(device + host)
    assert placed(spec, device="cuda").device == pytest.approx(device)


def test_works_add_up_and_the_largest_needs_the_memory() -> None:
    works = [Cost(1.0, 2.0, device=3.0, host=4.0, mapped=1.0), Cost(10.0, 20.0, device=5.0, host=1.0)]
    assert job(False, 100.0, works) == Cost(11.0, 22.0, 0.0, 107.0, 1.0)
    assert job(True, 100.0, works) == Cost(11.0, 22.0, 5.0, 104.0 + ACCELERATOR, 1.0)


def test_a_spec_that_nobody_registered_is_refused() -> None:
    class Other(Spec):
        stage: str

    with pytest.raises(FreelunchError, match="stage other"):
        placed(Other(stage="other"))


def test_every_stage_has_a_cost() -> None:
    assert {kind.model_fields["stage"].default for kind in set(cost.registry) - {object}} == set(STAGES)


# --- what they depend on ---------------------------------------------------------------------------------------------


def stages(depth: int = 4, sequences: int = 16) -> dict[str, Spec]:
    dense = dense_of(EIGHT_B, depth, sequences, 256)
    wanda = pruned_from(dense, "wanda", "2:4")
    windows: dict[str, Spec] = {str(window): recovered(dense, window) for window in ORDER}
    return windows | {
        "dense": dense,
        "grams": GramsSpec(dense=dense),
        "wanda": wanda,
        "sparsegpt": pruned_from(dense, "sparsegpt", "2:4"),
        "exact": recovered(dense, "matrix_exact"),
        "perplexity": evaluation(wanda, splits=("test",), length=256, sequences=256),
        "zero-shot": evaluation(wanda, tasks=("article_last_word",)),
    }


ORDER: tuple[str | int, ...] = ("matrix", "key_up", "attention_mlp", "block", 2, 4)


def eight(spec: Spec, depth: int = 4, **execution: Any) -> Cost:
    return placed(spec, EIGHT_B, depth, **{"stream_tokens": 1024, "products": "auto", "device": "cuda"} | execution)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_memory_is_flat_in_depth_and_in_calibration_tokens(device: str) -> None:
    deep, many = stages(16), stages(sequences=64)
    for name, spec in stages().items():
        plain = eight(spec, device=device)
        for other in (eight(deep[name], 16, device=device), eight(many[name], device=device)):
            assert (other.host, other.device) == (plain.host, plain.device), name
    # of files of hidden states more is mapped, where a stage reads some
    assert eight(many["dense"]).mapped > eight(stages()["dense"]).mapped and eight(many["wanda"]).mapped == 0


def test_windows_take_more_the_larger_they_are_and_on_a_gpu_their_host_does_not() -> None:
    found = [eight(stages()[str(window)]) for window in ORDER]
    sizes = [each.device for each in found]
    assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes) and len({each.host for each in found}) == 1
    # twice the weights of a block in training
    assert sizes[4] - sizes[3] > 17 * EIGHT_B.block_parameters


def test_a_step_takes_what_its_sequences_take() -> None:
    dense = dense_of(EIGHT_B, 4, sequences=16, length=1024)

    def of(**changes: Any) -> float:
        return eight(recovered(dense, **changes)).device

    sizes = [of(batch_size=size) for size in (4, 8, 16)]
    assert sizes[0] < sizes[1] < sizes[2] == of(batch_size=32, accumulation=2)
    assert of(batch_size=4, learning_rate="auto") > sizes[0] > of(batch_size=4, optimizer="sgd")
    assert of(batch_size=4, parametrization="mask_lora") < sizes[0]
    retrained = RetrainedSpec(
        pruned=pruned_from(dense, "wanda", "2:4"), calibration=dense.calibration, training=TRAINING
    )
    kept = eight(retrained, checkpointing=False)
    assert eight(retrained).device < kept.device and eight(retrained).operations > kept.operations


@pytest.mark.parametrize("name", ["dense", "grams", "perplexity", "zero-shot"])
def test_larger_batches_and_wider_products_take_more(name: str) -> None:
    spec = stages(sequences=256)[name]
    plain, batch, wide = (
        eight(spec, **changes).device for changes in ({}, {"stream_tokens": 65536}, {"products": "float32"})
    )
    assert plain < batch and plain < wide


def test_a_search_of_rates_is_operations_too() -> None:
    searched, plain = (placed(recovered(dense_of(), learning_rate=rate)) for rate in ("auto", 1e-3))
    # five trials of all 4 steps, and a validation each
    assert searched.operations == pytest.approx(plain.operations + 5 * (6 + 0.5) * 64 * FORWARD)


def test_zero_shot_holds_a_whole_model_where_it_fits() -> None:
    asked = stages()["zero-shot"]
    small, large = ({"zero_shot": "auto", "device": "cpu", "stream_tokens": tokens} for tokens in (1024, 10**9))
    for execution, same in ((small, "whole"), (large, "streaming")):
        assert eight(asked, **execution).host == eight(asked, **execution | {"zero_shot": same}).host


# --- machines --------------------------------------------------------------------------------------------------------


@pytest.fixture
def uncached() -> Any:
    fast_dtypes.cache_clear()
    yield
    fast_dtypes.cache_clear()


@pytest.mark.parametrize(
    ("text", "fast"),
    [
        ("flags : fpu avx2", set()),
        ("flags : fpu avx512_bf16 avx2", {"bfloat16"}),
        ("Features : fp asimdhp bf16", {"bfloat16", "float16"}),
        (None, set()),
    ],
)
def test_products_of_a_cpu_are_known_by_its_flags(text: str | None, fast: set[str], tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert fast_dtypes(tmp_path / "cpuinfo") == fast


def test_products_are_known_without_torch_as_torch_knows_them(uncached: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from freelunch.engine.device import DTYPES, products

    for name, dtype in DTYPES.items():
        assert product_bytes(name, "cpu", "auto") == products(dtype, torch.device("cpu")).itemsize
        assert product_bytes(name, "cuda", "auto") == dtype.itemsize
        assert product_bytes(name, "cuda", "float32") == 4
    monkeypatch.setattr("freelunch.engine.accelerators.visible", lambda environment: ["0"])
    assert product_bytes("float16", "auto", "auto") == 2
