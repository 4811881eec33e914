"""Repair by statistics: moments are those of real outputs, scales do what they say, and the stage writes an overlay."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from freelunch.engine.overlays import Masked
from freelunch.errors import FreelunchError
from freelunch.plan.plan import Plan
from freelunch.plan.specs import PrunedSpec, RepairedSpec
from freelunch.pruning.hessian import Moments, moments
from freelunch.pruning.matrix import Statistics
from freelunch.recover.repair import Mode, scales
from freelunch.results.artifacts import Artifact
from freelunch.results.stage import Stage
from freelunch.stages import repaired as module
from freelunch.stages.network import MASKS, open_source
from merging import tensors
from stage_runs import EXECUTION, prepare, run, tiny_config, tiny_plan

MODES: tuple[Mode, ...] = ("channel", "layer", "shrink")
ROWS, COLUMNS, TOKENS = 7, 12, 300


def random_inputs(seed: int, tokens: int = TOKENS) -> Tensor:
    """Correlated, of different loudness, and with means that are not 0; float64 ``[tokens, COLUMNS]``."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    return (draw(tokens, 3) @ draw(3, COLUMNS) + 0.5 * draw(tokens, COLUMNS) + draw(COLUMNS)) * torch.logspace(
        -0.3, 0.3, COLUMNS
    )


def statistics_of(inputs: Tensor) -> Statistics:
    return Statistics(len(inputs), inputs.sum(0), inputs.square().sum(0), (inputs.T @ inputs).float())


def random_weights(seed: int, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Dense weights, and the same with about half of them pruned; no row is pruned whole."""
    generator = torch.Generator().manual_seed(1000 + seed)
    weight = torch.randn(rows, COLUMNS, generator=generator)
    mask = torch.rand(rows, COLUMNS, generator=generator) < 0.5
    mask[:, seed % COLUMNS] = True
    return weight, weight * mask


def random_moments(seed: int = 0, rows: int = ROWS) -> Moments:
    return moments(*random_weights(seed, rows), statistics_of(random_inputs(seed)))


# --- moments ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(2, 400))
def test_moments_are_those_of_the_outputs(seed: int, tokens: int) -> None:
    inputs, (weight, pruned) = random_inputs(seed, tokens), random_weights(seed)
    found = moments(weight, pruned, statistics_of(inputs))
    y, z = inputs @ weight.double().T, inputs @ pruned.double().T
    # of a Gram matrix in float32
    tolerance = 2e-5 * (y.square().mean(0) + z.square().mean(0) + weight.double().square() @ inputs.square().mean(0))
    covariance = (y * z).mean(0) - y.mean(0) * z.mean(0)
    for mine, true in ((found.dense, y.var(0, correction=0)), (found.sparse, z.var(0, correction=0))):
        assert ((mine - true).abs() <= tolerance).all()
    assert ((found.covariance - covariance).abs() <= tolerance).all()
    assert found.samples == tokens


def test_moments_do_not_depend_on_the_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = random_moments(rows=20)
    monkeypatch.setattr("freelunch.pruning.hessian._PANEL", 3)
    parts = random_moments(rows=20)
    torch.testing.assert_close(parts.covariance, whole.covariance)
    torch.testing.assert_close(parts.dense, whole.dense)


@given(st.integers(0, 10**6), st.integers(2, 300))
def test_constant_inputs_leave_no_variance_but_rounding_which_counts_as_none(seed: int, tokens: int) -> None:
    weight, pruned = random_weights(seed)
    constants = torch.randn(COLUMNS, generator=torch.Generator().manual_seed(seed))
    inputs = constants.expand(tokens, COLUMNS)
    statistics = replace(statistics_of(inputs.double()), gram=inputs.T @ inputs)
    found = moments(weight, pruned, statistics)
    assert not found.dense.any() and not found.sparse.any()
    assert all((scales(found, mode) == 1).all() for mode in MODES)


@pytest.mark.parametrize("where", ["weight", "pruned", "gram", "sums"])
def test_nan_is_an_error(where: str) -> None:
    weight, pruned = random_weights(0)
    inputs = statistics_of(random_inputs(0))
    assert inputs.gram is not None
    {"weight": weight, "pruned": pruned, "gram": inputs.gram, "sums": inputs.sums.unsqueeze(0)}[where][0, 2] = math.nan
    with pytest.raises(FreelunchError, match="the variances of its outputs contain NaN or infinity"):
        moments(weight, pruned, inputs)


# --- scales ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6))
def test_channel_gives_every_output_its_dense_variance(seed: int) -> None:
    weight, pruned = random_weights(seed)
    inputs = random_inputs(seed)
    scaled = pruned.double() * scales(moments(weight, pruned, statistics_of(inputs)), "channel").unsqueeze(1)
    wanted, found = ((inputs @ each.double().T).var(0) for each in (weight, scaled))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=0)
    assert torch.equal(scaled == 0, pruned == 0)


def test_layer_gives_one_scale_and_the_dense_variance_on_average() -> None:
    found = random_moments()
    (scale,) = scales(found, "layer").unique().tolist()
    assert scale == pytest.approx(math.sqrt(found.dense.mean() / found.sparse.mean()), rel=1e-9)


@st.composite
def any_moments(draw: st.DrawFn) -> Moments:
    count = draw(st.integers(1, 8))
    numbers = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e6)), min_size=count, max_size=count)
    correlations = draw(st.lists(st.floats(-1, 1), min_size=count, max_size=count))
    dense, sparse = (torch.tensor(draw(numbers), dtype=torch.float64) for _ in range(2))
    covariance = torch.tensor(correlations, dtype=torch.float64) * dense.sqrt() * sparse.sqrt()
    return Moments(dense, sparse, covariance, draw(st.integers(1, 10**6)))


@given(any_moments())
def test_scales_are_positive_and_shrunk_ones_lie_between_layer_and_channel(found: Moments) -> None:
    channel, layer, shrink = (scales(found, mode) for mode in MODES)
    for each in (channel, layer, shrink):
        assert each.isfinite().all() and (each > 0).all()
        assert (each[(found.dense == 0) | (found.sparse == 0)] == 1).all()
    assert (shrink >= channel.minimum(layer) * (1 - 1e-12)).all()
    assert (shrink <= channel.maximum(layer) * (1 + 1e-12)).all()


@given(any_moments(), st.sampled_from([2.0**-20, 0.5, 2.0**30]))
def test_scales_do_not_depend_on_the_units_of_the_activations(found: Moments, unit: float) -> None:
    other = Moments(found.dense * unit, found.sparse * unit, found.covariance * unit, found.samples)
    for mode in MODES:
        torch.testing.assert_close(scales(other, mode), scales(found, mode), rtol=1e-9, atol=0)


@given(any_moments())
def test_more_samples_shrink_less(found: Moments) -> None:
    layer = scales(found, "layer").log()
    distances = [
        (scales(replace(found, samples=samples), "shrink").log() - layer).abs() for samples in (2, 10, 1000, 10**9)
    ]
    for fewer, more in pairwise(distances):
        assert (fewer <= more + 1e-12).all()


def test_many_samples_give_the_scales_of_channels_and_few_that_of_the_layer() -> None:
    found = random_moments(rows=40)
    shrunk = {samples: scales(replace(found, samples=samples), "shrink") for samples in (2, 100, 10**12)}
    layer, channel = scales(found, "layer"), scales(found, "channel")
    torch.testing.assert_close(shrunk[2], layer)
    torch.testing.assert_close(shrunk[10**12], channel)
    assert not torch.allclose(shrunk[100], layer, rtol=1e-2) and not torch.allclose(shrunk[100], channel, rtol=1e-2)


def test_of_few_samples_shrunk_scales_are_nearest_to_the_true_ones() -> None:
    channels, samples, rho = 500, 20, 0.7
    generator = torch.Generator().manual_seed(1)
    true = 0.2 + 0.15 * torch.randn(channels, dtype=torch.float64, generator=generator)
    y, noise = torch.randn(2, channels, samples, dtype=torch.float64, generator=generator)
    z = (rho * y + math.sqrt(1 - rho**2) * noise) / true.exp().unsqueeze(1)
    covariance = ((y - y.mean(1, keepdim=True)) * (z - z.mean(1, keepdim=True))).mean(1)
    found = Moments(y.var(1, correction=0), z.var(1, correction=0), covariance, samples)
    error = {mode: (scales(found, mode).log() - true).square().mean().item() for mode in MODES}
    assert error["shrink"] < 0.8 * min(error["channel"], error["layer"])


def test_matching_makes_larger_errors_than_least_squares_at_most_twice() -> None:
    """The claim of the module's docstring; with uncorrelated inputs, larger than no repair at all."""
    weight, pruned = random_weights(3)
    inputs = torch.randn(4000, COLUMNS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    inputs = torch.linalg.qr(inputs - inputs.mean(0)).Q  # centred and uncorrelated
    found = moments(weight, pruned, statistics_of(inputs))
    y, z = inputs @ weight.double().T, inputs @ pruned.double().T

    def error(scale: Tensor) -> Tensor:
        return (y - z * scale).square().mean(0)

    matched, least = error(scales(found, "channel")), error(found.covariance / found.sparse)
    rho = found.covariance / (found.dense * found.sparse).sqrt()
    torch.testing.assert_close(matched / least, 2 / (1 + rho), rtol=1e-4, atol=0)
    assert (matched >= error(torch.ones(ROWS))).all()


@pytest.mark.parametrize("mode", MODES)
@given(seed=st.integers(0, 10**6))
def test_what_was_not_pruned_is_not_changed(mode: Mode, seed: int) -> None:
    weight, _ = random_weights(seed)
    assert (scales(moments(weight, weight.clone(), statistics_of(random_inputs(seed))), mode) == 1).all()


@pytest.mark.parametrize("mode", MODES)
def test_rows_pruned_whole_keep_1_and_do_not_count_for_others(mode: Mode) -> None:
    weight, pruned = random_weights(0)
    inputs = statistics_of(random_inputs(0))
    alone = scales(moments(weight[:5], pruned[:5], inputs), mode)
    pruned[5:] = 0
    found = scales(moments(weight, pruned, inputs), mode)
    assert (found[5:] == 1).all()
    torch.testing.assert_close(found[:5], alone, rtol=1e-9, atol=0)


# --- the stage -------------------------------------------------------------------------------------------------------

PRUNINGS: list[dict[str, Any]] = [
    {"criterion": "wanda", "pattern": "50%", "repair": list(MODES)},
    {"criterion": "wanda", "pattern": "0%", "repair": list(MODES)},
    {"criterion": "sparsegpt", "pattern": "2:4"},
    {"criterion": "flap", "pattern": "25% structured global", "refinement": "bias", "repair": "channel"},
]


def make(dtype: str) -> Plan:
    raw = tiny_config()
    raw["models"]["tiny"]["dtype"] = dtype
    raw["suites"]["tiny"]["runs"] = [{"recovery": "repair"} | each for each in PRUNINGS]
    return tiny_plan(raw)


PLANS = {dtype: make(dtype) for dtype in ("bfloat16", "float32")}


def find(criterion: str, mode: str = "shrink", pattern: str | None = None, dtype: str = "bfloat16") -> RepairedSpec:
    (found,) = (
        spec for spec in PLANS[dtype].specs.values() if isinstance(spec, RepairedSpec) and spec.repair == mode
        and spec.pruned.criterion == criterion and pattern in (None, spec.pruned.pattern)
    )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that repairs read."""
    root = tmp_path_factory.mktemp("repair")
    for plan in PLANS.values():
        for spec in plan.specs.values():
            if isinstance(spec, RepairedSpec):
                prepare(spec, root)
    return root


def dense_inputs(root: Path, spec: PrunedSpec, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs of every linear layer of the dense model on the calibration set ``[tokens, columns]``, and its tensors."""
    calibration = spec.dense.calibration
    model = AutoModelForCausalLM.from_pretrained(root / calibration.model.folder, dtype=dtype)
    caught: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_pre_hook(
                lambda _, inputs, name=name: caught.__setitem__(name, inputs[0].flatten(0, 1).double())
            )
    tokens = load_file(root / calibration.folder / "tokens.safetensors")["calibration"]
    with torch.no_grad():
        model(tokens.long())
    return caught, dict(model.state_dict())


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.03)])
@pytest.mark.parametrize("criterion", ["wanda", "flap"])
def test_repaired_matrices_give_the_dense_variances(criterion: str, dtype: str, tolerance: float, root: Path) -> None:
    spec = find(criterion, "channel", "50%" if criterion == "wanda" else None, dtype)
    inputs, weights = dense_inputs(root, spec.pruned, getattr(torch, dtype))
    repaired = tensors(run(spec, root))
    assert len(repaired) == 4 * 7
    for name, weight in repaired.items():
        assert weight.dtype == getattr(torch, dtype)
        x, alive = inputs[name.removesuffix(".weight")], weight.any(1)
        found, wanted = ((x @ each.double().T).var(0) for each in (weight, weights[name]))
        assert not found[~alive].any()
        assert ((found / wanted - 1)[alive].abs() <= tolerance).all(), name


@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt", "flap"])
def test_overlays_read_back_what_was_written_and_zeros_stay(criterion: str, root: Path) -> None:
    mode = "channel" if criterion == "flap" else "shrink"
    spec = find(criterion, mode, "50%" if criterion == "wanda" else None)
    written = tensors(run(spec, root))
    evaluation = next(run.evaluation for run in PLANS["bfloat16"].runs["tiny"] if run.evaluation.subject == spec)
    stage = Stage(evaluation, root, EXECUTION, "code")
    source, before = (open_source(stage, spec.base, overlays) for overlays in (spec.overlays, [spec.pruned]))
    masks = Masked(stage.tensors(spec.base), stage.tensors(spec.pruned, MASKS))
    for name, tensor in written.items():
        mask = masks.mask(name)
        assert mask is not None and torch.equal(source.load(name), tensor)
        assert not tensor[~mask].any() and torch.equal(tensor == 0, before.load(name) == 0)
        # a row is scaled by one positive number
        old = before.load(name).float()
        ratios = torch.where(old == 0, math.nan, tensor.float() / old)
        assert (ratios.nan_to_num(1) > 0).all()
        low, high = ratios.nan_to_num(math.inf).amin(1), ratios.nan_to_num(-math.inf).amax(1)
        some = (old != 0).any(1)
        assert (high[some] / low[some] < 1.02).all()
    biases = [name for name in tensors(Artifact(root / spec.pruned.folder, spec.pruned)) if name.endswith(".bias")]
    assert bool(biases) == (criterion == "flap")
    assert all(torch.equal(source.load(name), before.load(name)) for name in biases)


def test_the_manifest_tells_the_sparsity_and_the_scales(root: Path) -> None:
    manifest = run(find("wanda", "layer", "50%"), root).manifest
    assert manifest["achieved_sparsity"] == 0.5
    assert len(manifest["scales"]) == 4 * 7
    for about in manifest["scales"].values():
        assert about["min"] == about["max"] == pytest.approx(about["mean"])
    about = run(find("wanda", "channel", "50%"), root).manifest["scales"]
    assert all(each["min"] < each["mean"] < each["max"] for each in about.values())
    flap = run(find("flap", "channel"), root).manifest["scales"]
    json.dumps(flap, allow_nan=False)


@pytest.mark.parametrize("mode", MODES)
def test_repairing_an_unpruned_network_changes_no_bit(mode: str, root: Path) -> None:
    spec = find("wanda", mode, "0%")
    artifact, model = run(spec, root), Artifact(root / spec.base.folder, spec.base)
    before = tensors(model)
    found = tensors(artifact)
    assert found and all(torch.equal(before[name], tensor) for name, tensor in found.items())
    assert all(each == {"mean": 1, "min": 1, "max": 1} for each in artifact.manifest["scales"].values())


def test_a_bad_statistic_or_scale_is_an_error_with_the_matrix(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, real = find("wanda", "layer", "50%"), module.read_gram

    def broken(artifact: Artifact, device: str, block: int, leader: str) -> Tensor:
        gram = real(artifact, device, block, leader)
        return gram * math.nan if block == 2 and "down" in leader else gram

    monkeypatch.setattr(module, "read_gram", broken)
    with pytest.raises(FreelunchError, match=r"^model.layers.2.mlp.down_proj: the variances of its outputs contain"):
        run(spec, root)
    assert not (root / spec.manifest).exists()
    monkeypatch.setattr(module, "read_gram", real)
    monkeypatch.setattr(module, "scales", lambda found, mode: torch.full_like(found.dense, math.inf))
    with pytest.raises(FreelunchError, match=r"^model.layers.0.self_attn.q_proj: its repaired weights do not fit"):
        run(spec, root)


def test_a_revived_weight_is_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_source", lambda stage, base, overlays: stage.tensors(base))
    with pytest.raises(FreelunchError, match=r"^model.layers.0.self_attn.q_proj: 2048 pruned weights are not zero"):
        run(find("wanda", "layer", "50%"), root)
