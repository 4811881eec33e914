"""Windows of one matrix in closed form: least squares, row by row, and nothing that is trained does better."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_recovery_flows import Case, catching, check_result
from test_recovery_windows import spec_of, whole_models
from torch import Tensor

from freelunch.errors import FreelunchError
from freelunch.plan.specs import Training
from freelunch.pruning.matrix import Statistics
from freelunch.recover.reconstruct import reconstruct_window, solve_window
from freelunch.recover.training import Trained
from freelunch.recover.windows import Window
from stage_runs import need
from tiny import random_model

SOLVED = ["qwen2", "opt"]
BIASED = {"llama": (), "qwen2": ("q_proj", "k_proj", "v_proj"),
          "opt": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")}  # fmt: skip
BIASES = Training(parametrization="full + biases")
WEIGHTS = Training(parametrization="full")
MARGIN = 1 + 1e-3  # of the damping, and of float32
Pairs = dict[str, tuple[Tensor, Tensor]]


def statistics_of(inputs: Tensor) -> Statistics:
    flat = inputs.double().flatten(0, 1)
    return Statistics(len(flat), flat.sum(0), flat.square().sum(0), (flat.T @ flat).float())


def build(family: str, sequences: int = 40, **config: Any) -> Case:
    """More tokens than any matrix has inputs, or there is no one solution."""
    model = random_model(family, num_hidden_layers=2, **config)
    return Case(family, "dense", "matrix", model=model, calibration=sequences)


def solve(case: Case, window: Window, training: Training, pairs: Pairs | None = None) -> tuple[Trained, Pairs]:
    """A window solved for, and the pairs that it is about; only validation ones are read."""
    pairs = pairs or case.flow.pairs(window)
    given, found = pairs, statistics_of(pairs["calibration"][0])

    def pair(split: str, _window: Window) -> tuple[Tensor, Tensor]:
        assert split == "validation"
        return given[split]

    case.flow.pair = pair  # type: ignore[method-assign,assignment]
    try:
        names = []
        result = solve_window(case.flow, window, case.masks.get, training, lambda name: names.append(name) or found)  # type: ignore[func-returns-value]
        assert names == [name_of(case, window)]
    finally:
        del case.flow.pair
    return result, pairs


def name_of(case: Case, window: Window) -> str:
    return f"{case.prefix}.{window.blocks[0]}.{window.matrices[0]}"


def error(state: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> float:
    """Mean squared error in float64 of a weight and, if there is one, a bias."""
    output = inputs.double() @ state["weight"].double().T + (state["bias"].double() if "bias" in state else 0)
    return float((output - targets.double()).square().mean())


def lstsq(case: Case, window: Window, pairs: Pairs, with_bias: bool) -> dict[str, Tensor]:
    """Row by row in float64 on the columns that are kept, with a column of ones for the bias."""
    name = name_of(case, window)
    inputs, targets = (part.double().flatten(0, 1).numpy() for part in pairs["calibration"])
    mask = case.masks[f"{name}.weight"].numpy()
    bias = case.dense.get(f"{name}.bias", torch.zeros(len(mask))).double().numpy().copy()
    weight = np.zeros(mask.shape)
    for row, kept in enumerate(mask):
        if with_bias:
            columns = np.column_stack([inputs[:, kept], np.ones(len(inputs))])
            solution = np.linalg.lstsq(columns, targets[:, row], rcond=None)[0]
            weight[row, kept], bias[row] = solution[:-1], solution[-1]
        else:
            weight[row, kept] = np.linalg.lstsq(inputs[:, kept], targets[:, row] - bias[row], rcond=None)[0]
    return {"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)}


def whole(case: Case, window: Window, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weight and bias of a window's matrix with some tensors over the pruned ones."""
    name = name_of(case, window)
    kinds = [kind for kind in ("weight", "bias") if f"{name}.{kind}" in {**case.dense, **tensors}]
    return {kind: tensors.get(f"{name}.{kind}", case.dense.get(f"{name}.{kind}", torch.empty(0))) for kind in kinds}


@cache
def solved(family: str, parametrization: str) -> tuple[Case, list[tuple[Window, Trained, Pairs]]]:
    case = build(family)
    training = Training(parametrization=parametrization)
    return case, [(window, *solve(case, window, training)) for window in case.windows]


every = pytest.mark.parametrize(
    ("family", "parametrization"), [(family, text) for family in SOLVED for text in ("full", "full + biases")]
)


@every
def test_solutions_are_those_of_least_squares(family: str, parametrization: str) -> None:
    case, results = solved(family, parametrization)
    for window, result, pairs in results:
        name = name_of(case, window)
        fits = name.endswith(BIASED[family]) and bool(BIASED[family]) and "biases" in parametrization
        assert set(result.tensors) == {f"{name}.weight", *([f"{name}.bias"] if fits else [])}
        kept = int(case.masks[f"{name}.weight"].sum())
        assert result.trained == kept + (len(result.tensors[f"{name}.weight"]) if fits else 0)
        wanted = lstsq(case, window, pairs, fits)
        found = whole(case, window, result.tensors)
        torch.testing.assert_close(found["weight"].double(), wanted["weight"], rtol=2e-2, atol=2e-3)
        if fits:
            torch.testing.assert_close(found["bias"].double(), wanted["bias"], rtol=2e-2, atol=2e-3)
        assert error(found, *pairs["calibration"]) <= error(wanted, *pairs["calibration"]) * MARGIN
        if fits:  # what is left has no mean
            inputs, targets = (part.double().flatten(0, 1) for part in pairs["calibration"])
            left = (inputs @ found["weight"].double().T + found["bias"].double() - targets).mean(0)
            assert left.abs().max() < 1e-4


@every
def test_losses_are_those_of_the_pruned_and_the_solved_matrix(family: str, parametrization: str) -> None:
    case, results = solved(family, parametrization)
    for window, result, pairs in results:
        pruned = whole(
            case, window, {f"{name_of(case, window)}.weight": case.pruned(f"{name_of(case, window)}.weight")}
        )
        losses = [error(pruned, *pairs["validation"]), error(whole(case, window, result.tensors), *pairs["validation"])]
        assert result.fit.losses == pytest.approx(losses, rel=1e-4) and losses[1] < losses[0]
        assert result.record()["best_step"] == 1
        case.trained.update(result.tensors)
    check_result(case)
    case.trained.clear()


@every
def test_no_training_and_no_perturbation_does_better(family: str, parametrization: str) -> None:
    case, results = solved(family, parametrization)
    long = Training(parametrization=parametrization, epochs=3, batch_size=4, learning_rate=3e-3)
    generator = torch.Generator().manual_seed(0)
    for window, result, pairs in results[: len(results) // 2]:
        best = whole(case, window, result.tensors)
        lowest = error(best, *pairs["calibration"])
        trained = reconstruct_window(case.flow, window, case.masks.get, long)
        assert trained.tensors.keys() == result.tensors.keys()
        assert lowest <= error(whole(case, window, trained.tensors), *pairs["calibration"]) * MARGIN
        mask = case.masks[f"{name_of(case, window)}.weight"]
        for size in (1e-2, 1e-1):
            noise = size * torch.randn(mask.shape, generator=generator) * mask
            assert lowest < error(best | {"weight": best["weight"] + noise}, *pairs["calibration"])


def test_a_bias_makes_up_for_a_mean_that_weights_cannot() -> None:
    case = build("qwen2")
    window = case.windows[0]
    pairs = {split: (inputs + 2.0, targets) for split, (inputs, targets) in case.flow.pairs(window).items()}
    name = name_of(case, window)
    dense = {kind: case.dense[f"{name}.{kind}"] for kind in ("weight", "bias")}
    pairs = {split: (x, torch.nn.functional.linear(x, **dense)) for split, (x, _) in pairs.items()}
    with_bias, without = (solve(case, window, training, pairs)[0] for training in (BIASES, WEIGHTS))
    losses = [error(whole(case, window, found.tensors), *pairs["calibration"]) for found in (with_bias, without)]
    assert losses[0] < 0.99 * losses[1]
    wanted = lstsq(case, window, pairs, with_bias=True)
    assert losses[0] <= error(wanted, *pairs["calibration"]) * MARGIN


@pytest.mark.parametrize("family", ["qwen2", "llama"])  # with a bias, and without
def test_weights_make_up_for_a_bias_that_pruning_changed_and_nothing_trains(family: str) -> None:
    case = build(family)
    window = case.windows[0]
    name = name_of(case, window)
    dense = case.dense.get(f"{name}.bias", torch.zeros(len(case.dense[f"{name}.weight"])))
    generator = torch.Generator().manual_seed(5)
    changed = dense + torch.randn(dense.shape, generator=generator)
    case.trained[f"{name}.bias"] = changed
    pairs = {split: (inputs + 1.0, torch.empty(0)) for split, (inputs, _) in case.flow.pairs(window).items()}
    layer = torch.nn.functional.linear
    pairs = {split: (x, layer(x, case.dense[f"{name}.weight"], dense)) for split, (x, _) in pairs.items()}
    result, _ = solve(case, window, WEIGHTS, pairs)
    assert set(result.tensors) == {f"{name}.weight"} and result.fit.best_at == 1
    assert result.trained == int(case.masks[f"{name}.weight"].sum())
    shifted = {split: (x, y - (changed - dense)) for split, (x, y) in pairs.items()}
    wanted = lstsq(case, window, shifted, with_bias=False)
    torch.testing.assert_close(result.tensors[f"{name}.weight"].double(), wanted["weight"], rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("training", [WEIGHTS, BIASES], ids=["weights", "biases"])
def test_the_pruned_weights_are_kept_where_they_do_better_on_validation(training: Training) -> None:
    case = build("qwen2")
    window = case.windows[0]
    name, pairs = name_of(case, window), case.flow.pairs(window)
    pruned = {"weight": case.pruned(f"{name}.weight"), "bias": case.dense[f"{name}.bias"]}
    inputs = pairs["validation"][0]
    pairs["validation"] = (inputs, torch.nn.functional.linear(inputs, **pruned))  # which nothing beats
    result, _ = solve(case, window, training, pairs)
    assert result.fit.best_at == 0 and result.fit.losses[0] < 1e-9 < result.fit.losses[1]
    assert result.record()["best_loss"] == result.fit.losses[0]
    for full, tensor in result.tensors.items():
        assert torch.equal(tensor, pruned[full.rpartition(".")[2]]), full


@pytest.mark.parametrize("training", [WEIGHTS, BIASES], ids=["weights", "biases"])
@pytest.mark.parametrize("family", SOLVED)
def test_without_a_mask_the_dense_weights_come_back(family: str, training: Training) -> None:
    case = build(family)
    case.masks = {}
    for window in case.windows:
        result, pairs = solve(case, window, training)
        # the student has the masks yet, so what it starts from is worse
        assert result.fit.best_at == 1
        for name, tensor in result.tensors.items():
            torch.testing.assert_close(tensor, case.dense[name], rtol=1e-5, atol=1e-6)
        assert result.trained == sum(tensor.numel() for tensor in result.tensors.values())
        assert error(whole(case, window, result.tensors), *pairs["calibration"]) < 1e-9


def test_rows_that_lose_everything_and_inputs_that_are_zero_are_no_obstacle() -> None:
    case = build("opt")
    window = case.windows[0]
    name = f"{name_of(case, window)}.weight"
    case.masks[name][1], case.masks[name][2] = False, True
    pairs = case.flow.pairs(window)
    layer = case.model.get_submodule(name.removesuffix(".weight"))
    for split, (inputs, _) in pairs.items():
        inputs[..., 5] = 0
        pairs[split] = inputs, layer(inputs).detach()
    result, _ = solve(case, window, BIASES, pairs)
    found, wanted = whole(case, window, result.tensors), lstsq(case, window, pairs, with_bias=True)
    assert not found["weight"][~case.masks[name]].any() and bool(found["weight"].isfinite().all())
    assert error(found, *pairs["calibration"]) <= error(wanted, *pairs["calibration"]) * MARGIN


def test_biases_that_a_matrix_does_not_have_are_added_if_that_is_asked_for() -> None:
    case = build("llama")
    window = case.windows[3]
    name = name_of(case, window)
    result, pairs = solve(case, window, Training(parametrization="full + biases(add=1)"))
    assert set(result.tensors) == {f"{name}.weight", f"{name}.bias"}
    wanted, found = lstsq(case, window, pairs, with_bias=True), whole(case, window, result.tensors)
    assert error(found, *pairs["calibration"]) <= error(wanted, *pairs["calibration"]) * MARGIN
    torch.testing.assert_close(found["bias"].double(), wanted["bias"], rtol=2e-2, atol=2e-3)


def test_bfloat16_models_get_bfloat16_solutions() -> None:
    case = build("llama", dtype=torch.bfloat16)
    for window in case.windows[:7]:
        result, pairs = solve(case, window, WEIGHTS)
        (tensor,) = result.tensors.values()
        wanted = lstsq(case, window, pairs, with_bias=False)
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor.double(), wanted["weight"], rtol=5e-2, atol=2e-2)
        case.trained.update(result.tensors)
    assert all(torch.equal(case.trained[name] != 0, case.masks[name]) for name in case.trained)


def test_the_stage_solves_for_the_dense_inputs_of_every_matrix(tmp_path: Path) -> None:
    spec = spec_of({"model_type": "qwen2", "num_key_value_heads": 2, "intermediate_size": 48}, "matrix_exact")
    artifact = need(spec, tmp_path)
    dense, pruned, _ = whole_models(spec, tmp_path)
    tokens = load_file(tmp_path / spec.dense.calibration.folder / "tokens.safetensors")["calibration"].long()
    for window in artifact.manifest["windows"]:
        name = f"model.layers.{window['window']}"
        caught: list[Tensor] = []
        handle = dense.get_submodule(name).register_forward_pre_hook(catching(caught))
        with torch.no_grad():
            dense(tokens)
        handle.remove()
        found = load_file(artifact.file(f"window-{window['index']:03d}.safetensors"))
        bias, kept = f"{name}.bias" in found, pruned.get_parameter(f"{name}.weight") != 0
        assert bias == name.endswith(("q_proj", "k_proj", "v_proj")) and window["best_step"] == 1
        assert torch.equal(found[f"{name}.weight"] != 0, kept)
        inputs = caught[0].flatten(0, 1).double()
        layer, ones = dense.get_submodule(name).double(), [torch.ones(len(inputs), 1).double()] if bias else []
        targets, lowest = layer(inputs).detach(), 0.0
        for row, columns in enumerate(kept):
            given = torch.cat([inputs[:, columns], *ones], 1)
            target = targets[:, row] - (0 if bias or layer.bias is None else layer.bias[row].detach())
            left = given @ torch.linalg.lstsq(given, target.unsqueeze(1)).solution - target.unsqueeze(1)
            lowest += float(left.square().mean()) / len(kept)
        state = {kind: found[f"{name}.{kind}"] for kind in ("weight", *(["bias"] if bias else []))}
        assert error(state, inputs, targets) == pytest.approx(lowest, rel=1e-3), name
        layer.float()


def test_statistics_that_are_not_finite_are_an_error() -> None:
    case = build("llama")
    window = case.windows[0]
    pairs = case.flow.pairs(window)
    pairs["calibration"][0][0, 0, 0] = float("nan")
    with pytest.raises(FreelunchError, match="the Gram matrix of its inputs contains NaN or infinity"):
        solve(case, window, WEIGHTS, pairs)
