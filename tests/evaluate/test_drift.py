"""Drifts equal distances between whole models, token by token."""

from __future__ import annotations

import copy
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from freelunch.costs import cost, forward_operations
from freelunch.engine.accelerators import product_bytes
from freelunch.engine.blocks import find_blocks
from freelunch.engine.device import products
from freelunch.engine.overlays import InMemory, Masked
from freelunch.engine.streaming import Network
from freelunch.errors import FreelunchError
from freelunch.evaluate.drift import _distances, drifts
from freelunch.plan.facts import facts_of
from freelunch.plan.plan import Plan
from freelunch.plan.specs import EvaluationSpec, PrunedSpec
from stage_runs import need, tiny_config, tiny_plan
from tiny import random_model, random_tokens

BLOCKS = 3  # of the tiny models


def blocks_of(model):
    return find_blocks(model, BLOCKS)[1]


def network_of(model, dtype=torch.float32):
    return Network(model.config, InMemory(dict(model.state_dict())), dtype)


def masked(model, *blocks, seed=1):
    """A copy of a model with a third of the weights of some blocks' matrices set to zero."""
    torch.manual_seed(seed)
    copied = copy.deepcopy(model)
    for block in blocks:
        for module in blocks_of(copied)[block].modules():
            if isinstance(module, torch.nn.Linear):
                with torch.no_grad():
                    module.weight.mul_(torch.rand(module.weight.shape) > 1 / 3)
    return copied


def outputs(model, row):
    """Output ``[length, width]`` of every block of a whole model for one sequence, by forward hooks."""
    seen: dict[int, torch.Tensor] = {}

    def watch(index):
        def hook(module, inputs, output):
            seen[index] = (output[0] if isinstance(output, tuple) else output)[0].double()

        return hook

    handles = [block.register_forward_hook(watch(index)) for index, block in enumerate(blocks_of(model))]
    with torch.no_grad():
        model(input_ids=row.unsqueeze(0), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def distance(found, wanted):
    """Median over tokens of the relative squared distance, with loops."""
    ratios = []
    for one, other in zip(found.tolist(), wanted.tolist(), strict=True):
        error = math.fsum((a - b) ** 2 for a, b in zip(one, other, strict=True))
        ratios.append(error / math.fsum(b**2 for b in other))
    return statistics.median(ratios)


def literal(model, other, tokens):
    """For every block the local and the accumulated distances of all sequences."""
    swapped = [copy.deepcopy(model) for _ in range(BLOCKS)]
    for block, hybrid in enumerate(swapped):  # a dense model with one block of the other
        blocks_of(hybrid)[block].load_state_dict(blocks_of(other)[block].state_dict())
    local: list[list[float]] = [[] for _ in range(BLOCKS)]
    accumulated: list[list[float]] = [[] for _ in range(BLOCKS)]
    for row in tokens:
        wanted, found = outputs(model, row), outputs(other, row)
        for block, hybrid in enumerate(swapped):
            local[block].append(distance(outputs(hybrid, row)[block], wanted[block]))
            accumulated[block].append(distance(found[block], wanted[block]))
    return local, accumulated


def mean_and_error(values):
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean, spread / math.sqrt(len(values))


# in bfloat16 batches of one sequence, as in the reference: others may round differently
@pytest.mark.parametrize(("dtype", "batch", "rel"), [(torch.float32, 2, 1e-4), (torch.bfloat16, 1, 1e-9)])
@pytest.mark.parametrize("family", ["llama", "opt", "gemma2"])
def test_drifts_are_those_of_whole_models(family, dtype, batch, rel):
    model = random_model(family, dtype=dtype)
    other = masked(model, *range(BLOCKS))
    with torch.no_grad():
        other.get_input_embeddings().weight.mul_(1.1)
    tokens = random_tokens(5, 12)
    found = drifts(network_of(model, dtype), network_of(other, dtype), {"text": tokens}, batch * 12)["text"]
    local, accumulated = literal(model, other, tokens)
    assert len(found) == BLOCKS
    for drift, near, far in zip(found, local, accumulated, strict=True):
        assert (drift.local, drift.local_stderr) == pytest.approx(mean_and_error(near), rel=rel)
        assert (drift.accumulated, drift.accumulated_stderr) == pytest.approx(mean_and_error(far), rel=rel)
        assert 0 < drift.local != drift.accumulated


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2"])
@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_pruned_block_drifts_and_those_behind_it_only_pass_it_on(block, family):
    model = random_model(family, dtype=torch.bfloat16)
    networks = [network_of(each, torch.bfloat16) for each in (model, masked(model, block))]
    found = drifts(*networks, {"text": random_tokens(3, 12)}, 24)["text"]
    assert {value for drift in found[:block] for value in vars(drift).values()} <= {0.0}
    assert found[block].local == found[block].accumulated > 0
    assert all(drift.local == 0 < drift.accumulated for drift in found[block + 1 :])


def test_neither_batches_nor_other_windows_matter_and_one_sequence_has_no_error():
    model = random_model("llama")
    networks = network_of(model), network_of(masked(model, 0, 2))
    windows = {"short": random_tokens(3, 8), "long": random_tokens(2, 20, seed=1), "other": random_tokens(1, 8, seed=2)}
    together = drifts(*networks, windows, 16)
    assert list(together) == list(windows)
    for name, tokens in windows.items():
        assert repr(together[name]) == repr(drifts(*networks, {name: tokens}, 16)[name])  # NaN is not equal to itself
        for found, other in zip(together[name], drifts(*networks, {name: tokens}, 1000)[name], strict=True):
            assert tuple(vars(found).values()) == pytest.approx(tuple(vars(other).values()), rel=1e-4, nan_ok=True)
    assert all(math.isnan(drift.local_stderr) and math.isnan(drift.accumulated_stderr) for drift in together["other"])


def test_every_token_counts_alike_whatever_its_norm_and_zeros_only_where_both_are():
    dense_states, states = torch.tensor([[[1e4, 0.0], [0.0, 1.0]]]), torch.tensor([[[1e4, 1e3], [0.0, 2.0]]])
    assert _distances(states, dense_states, "").tolist() == pytest.approx([(0.01 + 1) / 2], rel=1e-12)
    # squares overflow the dtype of the model
    dense_states = torch.full((1, 2, 4), 3e38, dtype=torch.bfloat16)
    assert _distances(dense_states / 2, dense_states, "").item() == pytest.approx(0.25, rel=1e-12)
    zero, one = torch.zeros(1, 2, 4), torch.tensor([[[0.0] * 4, [1.0] * 4]])
    assert _distances(one, one, "").tolist() == [0] and _distances(one * 2, one, "").tolist() == [0.5]
    with pytest.raises(FreelunchError, match=r"^here: the dense state of a token is 0"):
        _distances(one, zero, "here")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["dense", "other"])
def test_states_that_are_not_finite_are_reported_with_block_and_text(which, value):
    model = random_model("llama")
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[3, 0] = value
    pair = (broken, model) if which == "dense" else (model, broken)
    with pytest.raises(FreelunchError, match=r"^drift of books test @ 8, block 1: hidden states contain NaN"):
        drifts(*(network_of(each) for each in pair), {"books test @ 8": random_tokens(2, 8)}, 100)


# --- tasks -----------------------------------------------------------------------------------------------------------

TASK = {"data": "documents", "splits": ["test"], "length": 64, "sequences": 4}
DRIFT = TASK | {"metric": "drift"}


def plan_of(*tasks: dict[str, Any]) -> Plan:
    """The dense model and one that is pruned by Wanda."""
    raw = tiny_config()
    raw["suites"]["tiny"] |= {"runs": [{"recovery": "none"}], "evaluate": list(tasks)}
    return tiny_plan(raw)


def evaluations(plan: Plan) -> list[EvaluationSpec]:
    return [run.evaluation for run in plan.runs["tiny"]]


def test_two_equal_drifts_are_refused() -> None:
    with pytest.raises(
        FreelunchError, match=r"evaluate\[1\]: drift of documents test at length 64 is measured already"
    ):
        plan_of(DRIFT, DRIFT | {"sequences": 2})


def test_a_drift_takes_three_passes_and_the_states_twice_and_of_the_dense_model_nothing() -> None:
    plan, without = plan_of(TASK, DRIFT), plan_of(TASK)
    (dense_cost, pruned_cost), (_, plain) = ([cost(e, p.config) for e in evaluations(p)] for p in (plan, without))
    facts = facts_of(plan.config, "tiny")
    extra = 3 * facts.num_hidden_layers * forward_operations(facts, 4 * 64, 64)
    assert dense_cost == plain and pruned_cost.operations == pytest.approx(plain.operations + extra)
    execution = plan.config.execution
    many, more = (
        cost(evaluations(plan_of(DRIFT | {"sequences": count}))[1], plan.config).host for count in (1000, 1001)
    )
    assert more - many == 2 * 64 * facts.hidden_size * product_bytes("bfloat16", execution.device, execution.products)


def test_the_stage_writes_drifts_of_pruned_models_only(tmp_path: Path) -> None:
    plain, spec = evaluations(plan_of(TASK, DRIFT))
    dense_metrics, metrics = (
        json.loads(need(each, tmp_path).file("metrics.json").read_text()) for each in (plain, spec)
    )
    assert [entry["metric"] for entry in dense_metrics] == ["ppl@64"]
    assert [(entry["metric"], entry.get("position")) for entry in metrics] == [
        ("ppl@64", None),
        *((f"drift_{kind}", str(block)) for block in range(4) for kind in ("local", "accumulated")),
    ]
    about = {"dataset": "documents", "split": "test", "length": 64}
    assert all(entry.items() >= about.items() for entry in metrics)
    # nothing but blocks was pruned, so the first one reads the same in both networks
    assert metrics[1]["value"] == metrics[2]["value"] > 0 and metrics[1]["stderr"] > 0
    assert [entry["value"] for entry in metrics[1:]] == drifts_by_hand(tmp_path, spec)


def drifts_by_hand(root: Path, spec: EvaluationSpec) -> list[float]:
    """The values of the stage, from its model, masks and text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pruned = spec.subject
    assert isinstance(pruned, PrunedSpec)
    folder = root / spec.base.folder
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    masks = {name: mask for file in (root / pruned.folder).glob("masks-*") for name, mask in load_file(file).items()}
    base = InMemory(dict(model.state_dict()))
    computed = products(torch.bfloat16, torch.device("cpu"))
    network = Network(model.config, Masked(base, InMemory(masks)), torch.bfloat16, products=computed)
    text = "\n\n".join(json.loads(line)["text"] for line in (root / spec.data[0].folder / "test.jsonl").open())
    tokens = torch.tensor(AutoTokenizer.from_pretrained(folder)(text)["input_ids"][: 4 * 64]).reshape(4, 64)
    dense = Network(model.config, base, torch.bfloat16, products=computed)
    found = drifts(dense, network, {"text": tokens}, 128)["text"]
    return [value for drift in found for value in (drift.local, drift.accumulated)]
