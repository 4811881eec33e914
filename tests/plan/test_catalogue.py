"""Known models and data, and the suite ``paper`` on them: real shapes, real pins, a plan for every model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from freelunch.plan.config import catalogue, parse_config
from freelunch.plan.facts import Facts, facts_of
from freelunch.plan.plan import Plan, Run, make_plan
from freelunch.plan.specs import ModelSpec, PrunedSpec, ReconstructedSpec, RetrainedSpec
from freelunch.plan.yaml_files import read_yaml

CONFIG = Path(__file__).parents[2] / "config.yaml"
SHAPES: dict[str, dict[str, Any]] = {
    **{model["hub"]["id"]: model["shape"] for model in catalogue("models").values()},
    "HuggingFaceTB/SmolLM2-135M-Instruct": read_yaml(CONFIG)["models"]["smollm2-135m"]["shape"],
}

PARAMETERS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "facebook/opt-1.3b": 1_315_758_080,
    "facebook/opt-125m": 125_239_296,
    "facebook/opt-13b": 12_853_473_280,
    "facebook/opt-2.7b": 2_651_596_800,
    "facebook/opt-30b": 29_974_540_288,
    "facebook/opt-6.7b": 6_658_473_984,
    "facebook/opt-66b": 65_719_701_504,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-14B-Instruct": 14_770_033_664,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
}
"""Parameters as the models' pages on the hub count them (Llama 2 without the rotary tables in its files)."""


def test_every_shape_has_a_known_count() -> None:
    assert SHAPES.keys() == PARAMETERS.keys()


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_shape_makes_a_model_of_the_published_size(name: str) -> None:
    row = SHAPES[name]
    # OPT's embedding is as wide as its states, but for opt-350m
    extra = {"word_embed_proj_dim": row["hidden_size"]} if "ffn_dim" in row else {}
    config = AutoConfig.for_model(**row, **extra)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    facts = Facts.model_validate(row)
    # all but norms, biases and learned positions
    assert facts.parameters == pytest.approx(PARAMETERS[name], rel=0.02 if "ffn_dim" in row else 3e-4)
    real = Facts.model_validate(config.to_dict())
    assert all(getattr(real, key) == getattr(facts, key) for key in facts.model_fields_set)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(parse_config(read_yaml(CONFIG)))


@pytest.fixture(scope="module")
def runs(plan: Plan) -> list[Run]:
    return plan.runs["paper"]


def test_known_entries_are_pinned_and_all_in_the_suite(plan: Plan, runs: list[Run]) -> None:
    used = {run.evaluation.base.source.hub.id for run in runs} | {"HuggingFaceTB/SmolLM2-135M-Instruct"}
    assert used == SHAPES.keys()
    data = {data.data for run in runs for data in run.evaluation.data} | {"minipile"}
    assert data == catalogue("data").keys()
    for section in ("models", "data", "images"):
        known = getattr(plan.config, section)
        assert catalogue(section).keys() <= known.keys()
        for name in catalogue(section):
            assert known[name].licence and (known[name].hub is not None or name == "imagenette")


def test_an_entry_of_the_config_wins_and_what_is_known_needs_none() -> None:
    raw = read_yaml(CONFIG)
    raw["models"] |= {"opt-125m": {"dtype": "float32"}, "opt-2.7b": {"path": "here", "dtype": "float32"}}
    config = parse_config(raw)
    changed, replaced, known = (config.models[f"opt-{size}"] for size in ("125m", "2.7b", "1.3b"))
    assert (changed.dtype, known.dtype) == ("float32", "float16") and changed.hub is not None
    assert (replaced.path, replaced.hub, replaced.family) == ("here", None, None)
    assert catalogue("models")["opt-125m"]["dtype"] == "float16" and "opt-1.3b" not in raw["models"]
    bare = parse_config({"default_suite": "a", "suites": {"a": {}}})
    assert bare.models.keys() == catalogue("models").keys()


def test_models_are_measured_at_the_lengths_they_have(plan: Plan, runs: list[Run]) -> None:
    for run in runs:
        context = facts_of(plan.config, run.evaluation.base.model).max_position_embeddings
        lengths = {task.length for task in run.evaluation.tasks if task.metric == "perplexity"}
        assert lengths == ({2048} if context == 2048 else {2048, 4096})
        if run.axes is not None:
            assert run.axes.length == min(4096, context)


def test_the_authors_example_is_in_it(runs: list[Run]) -> None:
    grid = [
        (run.axes.learning_rate, run.axes.epochs)
        for run in runs
        if run.axes is not None
        and isinstance(spec := run.evaluation.subject, ReconstructedSpec)
        and (run.axes.model, run.axes.criterion, run.axes.pattern) == ("llama-3.1-8b", "wanda", "2:4")
        and (spec.window, spec.flow, spec.pruned.prune_inputs) == ("attention_mlp", "dense", "dense")
        and run.axes.learning_rate != "auto"
        and (spec.dense.calibration.sequences, spec.dense.calibration.length) == (1024, 4096)
        and (spec.training.batch_size, spec.training.warmup, spec.training.schedule) == (2, 0.1, "linear")
    ]
    rates = (1e-7, 5e-7, 1e-6, 5e-6, 1e-5, 5e-5, 1e-4, 5e-4)
    assert Counter(grid) == Counter((rate, epochs) for rate in rates for epochs in (1, 5, 10))


def test_everything_recovered_has_its_pruned_and_its_dense_run(runs: list[Run]) -> None:
    pruned = {run.evaluation.subject.key for run in runs if isinstance(run.evaluation.subject, PrunedSpec)}
    dense = {run.evaluation.base.model for run in runs if isinstance(run.evaluation.subject, ModelSpec)}
    for run in runs:
        subject = run.evaluation.subject
        assert run.evaluation.base.model in dense
        # with prune_inputs recovered there is no pruned network by itself
        if isinstance(subject, ReconstructedSpec | RetrainedSpec) and subject.pruned.prune_inputs != "recovered":
            assert subject.pruned.key in pruned, run.name
