"""Predicted costs of stages: every one has some, and they grow with what is done."""

from __future__ import annotations

from math import isfinite
from typing import Any

import pytest

from freelunch.costs import cost
from freelunch.plan.facts import facts_of
from study import EVALUATE, FIRST, asked, plan_of, reconstructed, trained

COSTED: list[dict[str, Any]] = [
    {"window": ["attention_mlp", "block", 3, "model", "matrix", "matrix_exact", "key_up"]},
    {"window": ["block", "matrix"], "flow": ["sparse_local", "sparse_dense"], "learning_rate": [1e-3, "auto"]},
    {"window": "matrix", "flow": "official_matrix"},
    {"parametrization": ["full", "mask_lora", "spp + norms", "norms", "biases(add=1)"], "optimizer": ["adamw", "sgd"]},
    {"window": "block", "prune_inputs": "recovered", "batch_size": 5, "accumulation": [1, 3, 5]},
    {"recovery": "retrain", "loss": ["cross_entropy", "kl"], "parametrization": ["full", "norms"]},
    {"recovery": "repair", "repair": ["channel", "layer", "shrink"]},
]


@pytest.mark.parametrize("checkpointing", [True, False])
def test_every_recovery_has_a_cost(checkpointing):
    execution = {"execution.shards": 2, "execution.checkpointing": checkpointing}
    plan = plan_of({"suites.study.runs": COSTED} | execution)
    stages = ("shards", "reconstructed", "retrained", "repaired")
    specs = [spec for stage in stages for spec in plan.stage(stage).values()]
    assert {spec.stage for spec in specs} == set(stages)
    for spec in specs:
        needs = cost(plan.config, spec)
        for value in (needs.disk, needs.memory, needs.operations):
            assert isfinite(value) and value > 0, spec.name


def test_costs_grow_with_what_is_done():
    def needs(**axes: Any) -> Any:
        plan = plan_of({FIRST + axis: value for axis, value in axes.items()})
        return cost(plan.config, plan.runs["study"][-1].evaluation.subject)

    plain = needs(window="block")
    assert needs(window="block", learning_rate="auto").operations > plain.operations
    assert needs(window="block", flow="sparse_local").operations > plain.operations
    assert needs(window="block", training_sequences=16).operations > plain.operations
    assert needs(window="block", parametrization="mask_lora").memory < plain.memory < needs(window="model").memory
    large = {"window": "block", "batch_size": 8, "validation_sequences": 1}
    assert needs(**large, accumulation=2).memory < needs(**large).memory
    retrained = needs(recovery="retrain")
    assert (
        retrained.memory > needs(window="block", validation_sequences=1).memory
        and needs(recovery="retrain", loss="kl").memory > retrained.memory
    )
    sharded = plan_of({FIRST + "window": "block", "execution.shards": 4})
    (each,) = {cost(sharded.config, spec) for spec in sharded.stage("shards").values()}
    assert 4 * each.operations == pytest.approx(plain.operations) and each.memory == plain.memory


def test_a_training_costs_what_its_tokens_cost():
    def needs(**changes: Any) -> Any:
        return cost(plan_of(trained(changes)).config, reconstructed(trained(changes)).base)

    plain = needs(epochs=3)
    facts = facts_of(plan_of(trained()).config, "small")
    # of every parameter six per token: a backward pass is two forward ones; attention and validations come on top
    least = 6 * facts.parameters * 3 * 16 * 64
    assert least < plain.operations < 2 * least
    assert plain.disk == 2 * facts.parameters
    assert needs(epochs=6).operations - plain.operations > least
    assert needs(epochs=3, batch_size=8).memory > plain.memory > 16 * facts.parameters


def test_costs_of_answers_grow_with_what_is_asked() -> None:
    def need(task: dict[str, Any], **execution: Any) -> Any:
        plan = plan_of({EVALUATE: [task]} | {f"execution.{key}": value for key, value in execution.items()})
        return cost(plan.config, plan.runs["study"][-1].evaluation)

    assert need(asked(limit=20)).operations == 2 * need(asked(limit=10)).operations > 0
    assert need(asked(tasks=["rte"])).operations < need(asked(tasks=["rte", "hellaswag"])).operations
    assert need(asked(tasks=["gsm8k"]), zero_shot="streaming").operations > need(asked(tasks=["gsm8k"])).operations
    assert need(asked(), zero_shot="auto").memory == need(asked(), zero_shot="whole").memory
    assert need(asked(), zero_shot="whole", stream_tokens=10**9).memory > 32 * 2**30
    assert (
        need(asked(), zero_shot="auto", stream_tokens=10**9).memory
        == need(asked(), zero_shot="streaming", stream_tokens=10**9).memory
    )


def test_what_is_converted_takes_disk_and_what_is_linked_does_not() -> None:
    plans = [plan_of({FIRST + "model": "hubbed", "models.hubbed.hub.pickled": pickled}) for pickled in (False, True)]
    linked, converted = (cost(plan.config, *plan.stage("models").values()).disk for plan in plans)
    assert converted > 0 == linked
