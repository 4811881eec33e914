"""What cannot be is refused in one line, with the key and what would be right."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from freelunch.errors import FreelunchError
from freelunch.plan.config import parse_config
from freelunch.plan.plan import make_plan
from freelunch.plan.yaml_files import read_yaml
from study import BASE, EVALUATE, FIRST, QUESTIONS, RUNS, TRAIN, asked, complaint, plan_of, subject, trained


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("suits", "suites"),
        ("models.small.licens", "licence"),
        ("models.small.random.sed", "seed"),
        ("models.hubbed.hub.revison", "revision"),
        ("data.texts.spltis", "splits"),
        ("images.x.sizze", "size"),
        ("execution.devcie", "device"),
        ("defaults.epoch", "epochs"),
        ("suites.study.tabels", "tables"),
        ("suites.study.defaults.lenght", "length"),
        (f"{RUNS}.0.criterium", "criterion"),
        (f"{EVALUATE}.0.sequence", "sequences"),
    ],
)
def test_a_misspelt_key_is_named_with_the_nearest_one(path: str, nearest: str) -> None:
    parent, key = path.rpartition(".")[::2]
    sections: dict[str, Any] = {"defaults": {}, "images": {"x": {"path": "x", "splits": {}, "size": 1, "classes": 2}}}
    first = path.split(".")[0]
    message = complaint(({first: sections[first]} if first in sections else {}) | {path: 1})
    assert f"{parent.replace('.0', '[0]')}.{key}".lstrip(".") + ": unknown key" in message
    assert f"did you mean {nearest!r}? allowed: " in message


@pytest.mark.parametrize(
    "path",
    ["default_suite", "suites", "data.texts.splits", "models.wheeled.wheel.sha256", "models.wheeled.shape", EVALUATE],
)
def test_a_missing_key_is_named(path: str) -> None:
    raw = deepcopy(BASE)
    raw["suites"]["study"]["defaults"]["model"] = "wheeled"
    at = raw
    *parents, last = path.split(".")
    for step in parents:
        at = at[step]
    del at[last]
    with pytest.raises(FreelunchError, match=rf"{path}: this key is missing"):
        make_plan(parse_config(raw))


def test_an_axis_without_a_default_is_named_where_it_is_missing() -> None:
    assert f"{RUNS}[0].model: this key is missing" in complaint({"suites.study.defaults": {}})


def test_every_problem_is_a_line_of_its_own() -> None:
    message = complaint({"dense.max_gib": -1, "execution.devise": "cpu", "models.small.dtype": "int8"})
    assert len(message.splitlines()) == 3


@pytest.mark.parametrize(("raw", "kind"), [(None, "NoneType"), ([], "list"), ("text", "str")])
def test_a_config_that_is_no_mapping_is_refused(raw: Any, kind: str) -> None:
    with pytest.raises(FreelunchError, match=f"the config is a {kind}, not a mapping"):
        parse_config(raw)


@pytest.mark.parametrize(
    ("path", "value", "parts"),
    [
        ("pattern", "7:8", [".pattern", "60", "multiple of 8", "small"]),
        ("pattern", 124, [".pattern", "124", "2:4", "in quotes"]),
        ("length", 256, [".length: 256 tokens exceed the context of small, 128"]),
        ("length", 1, [".length: Input should be greater than 1"]),
        ("window", 5, [".window: a window of 5 blocks is larger than the model, which has 4 (small)"]),
        ("window", "half", [".window", "'half'", "attention_mlp", "block"]),
        ("calibration", "only_test", [".calibration", "data.only_test has no split 'calibration'; allowed: test"]),
        ("criterion", "wander", [".criterion", "'wander'", "did you mean 'wanda'?", "magnitude"]),
        ("criterion", [], [".criterion: the list is empty"]),
        ("recovery", "reconstuct", [".recovery: 'reconstuct' is not possible; did you mean 'reconstruct'? allowed: "]),
        ("flow", "sparse_lokal", [".flow", "did you mean 'sparse_local'?", "official_matrix"]),
        ("parametrization", "ful + norms", [".parametrization", "did you mean 'full'?", "mask_lora"]),
        ("targets", "q-proj", [".targets", "'q-proj'", "q_proj + v_proj"]),
        ("training_sequences", 0, [".training_sequences: ", "greater than 0"]),
        ("warmup", float("nan"), [".warmup"]),
        ("learning_rate", 0, [".learning_rate: a learning rate is auto, or a number above 0"]),
        ("learning_rate", "atuo", [".learning_rate: a learning rate is auto, or a number above 0 (found 'atuo')"]),
        ("learning_rate", float("inf"), [".learning_rate"]),
        ("seed", 2**31, [".seed", "less than 2147483648"]),
        ("epochs", 1.5, [".epochs", "1.5"]),
    ],
)  # fmt: skip
def test_a_value_that_an_axis_cannot_have_is_named_with_what_it_can(path: str, value: Any, parts: list[str]) -> None:
    message = complaint({FIRST + path: value})
    assert message.startswith(f"{RUNS}[0]") and [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize(
    ("path", "value", "parts"),
    [
        ("default_suite", "studi", ["'studi'", "did you mean 'study'?"]),
        ("suites.study.tables", ["perplexty"], ["[0]: there is no 'perplexty'; did you mean 'perplexity'? ", "cost"]),
        ("suites.study.figures", ["gain", "gian"], ["[1]", "did you mean 'gain'?"]),
        ("suites.study.include", ["study"], ["[0]: study includes study"]),
        ("suites.pruned", BASE["suites"]["study"], [": a suite cannot have the name of a rule or of a folder"]),
        (f"{EVALUATE}.0.data", "untested", ["splits: data.untested has no split 'test'"]),
        (f"{EVALUATE}.0.splits", ["tset"], ["splits[0]: 'tset' is not possible; did you mean 'test'?"]),
        (f"{EVALUATE}.0.length", 129, ["129 tokens exceed the context of small, 128"]),
        (f"{EVALUATE}.0.too_long", "ignore", ["refuse, skip"]),
        (f"{EVALUATE}.0.only", {"criterion": "wnda"}, ["did you mean 'wanda'?"]),
        (f"{EVALUATE}.0.only", {"seed": []}, ["seed: the list is empty"]),
        (f"{EVALUATE}.0.only", {"seed": 1}, ["no run of the suite"]),
        (EVALUATE, [{"data": "texts", "length": 64}] * 2, ["[1]: perplexity of texts test at length 64 is measured"]),
        (EVALUATE, [asked(tasks=["rte", "boolq"]), asked(limit=3)], ["[1].tasks: boolq is measured already"]),
        (EVALUATE, [{"data": "texts", "length": 129, "too_long": "skip"}], [": every task is too long for small"]),
        (EVALUATE, ["perplexity"], ["[0]: "]),
        ("models.small.dtype", "float61", ["did you mean 'float16'? allowed: bfloat16, float16, float32"]),
        ("models.small.path", "here", ["give exactly one of wheel, hub, path, random, train; found path, random"]),
        ("models.hubbed.hub", None, ["exactly one of wheel, hub, path, random, train; found none"]),
        ("models.wheeled.wheel.sha256", "abc", ["'abc'", "64"]),
        ("models.hubbed.hub.revision", "main", ["'main'", "40"]),
        ("models.hubbed.hub.id", "../x", ["'../x'"]),
        ("data.texts.splits", {"calibration": 0.5, "validaton": 0.5}, ["validaton", "did you mean 'validation'?"]),
        ("data.texts.splits", {"calibration": 0.9, "test": 0.2}, ["add up to at most 1"]),
        ("data.texts.splits", {"calibration": 0.9, "test": "x"}, ["all names, or fractions"]),
        ("data.texts.path", None, ["exactly one of wheel, hub, path; found none"]),
        ("data.texts.random", {"config": {}}, ["unknown key"]),
        ("data.texts.train", TRAIN, ["unknown key"]),
        ("data.texts.questions", {"titel": "title"}, [".titel: unknown key; did you mean 'title'?"]),
        ("data.only_test.hub.pickled", True, ["no pickled weights"]),
        ("dense.max_gib", float("inf"), ["finite"]),
        ("execution.device", "gpu", ["'gpu' is not possible; ", "allowed: auto, cpu, cuda"]),
    ],
)  # fmt: skip
def test_what_cannot_be_elsewhere_is_named_with_what_can(path: str, value: Any, parts: list[str]) -> None:
    message = complaint({path: value})
    assert message.startswith(".".join(path.split(".")[:2]))
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "txts"}, ".data: there is no 'txts'; did you mean 'texts'?"),
        ({"data": "only_test"}, ".data: data.only_test has no split 'calibration'; allowed: test"),
        ({"length": 129}, ".length: 129 tokens exceed the context of small, 128"),
        ({"learning_rte": 1.0}, ".learning_rte: unknown key; did you mean 'learning_rate'?"),
        ({"schedule": "cosin"}, ".schedule: 'cosin' is not possible; did you mean 'cosine'?"),
        ({"learning_rate": "auto"}, ".learning_rate: Input should be a valid number"),
        ({"sequences": None}, ".sequences: this key is missing"),
        ({"config": TRAIN["config"] | {"hidden_size": 62}},
         ".config: hidden_size, 62, is no multiple of num_attention_heads, 4; give head_dim"),
        ({"config": TRAIN["config"] | {"num_key_value_heads": 3}},
         ".config: num_attention_heads, 4, is no multiple of num_key_value_heads, 3"),
        ({"config": TRAIN["config"] | {"vocab_size": 256}}, ".config.vocab_size: must be 257 or more"),
        ({"config": {"model_type": "llama"}}, ".config.num_hidden_layers: this key is missing"),
    ],
)  # fmt: skip
def test_a_training_that_cannot_be_is_named_whether_a_run_needs_it_or_not(
    changes: dict[str, Any], message: str
) -> None:
    assert complaint({"models.other": trained(changes)["models.small"]}).startswith(
        "models.other.train" + message.replace("small", "other")
    )


def test_a_local_model_without_a_config_is_named(tmp_path: Any) -> None:
    message = complaint({"models.local": {"path": str(tmp_path)}, FIRST + "model": "local"})
    assert message.startswith("models.local.path: cannot read") and str(tmp_path / "config.json") in message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Any) -> None:
    with pytest.raises(FreelunchError, match=r"cannot read .*absent\.yaml"):
        read_yaml(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes("a: é".encode("latin-1"))
    with pytest.raises(FreelunchError, match=r"cannot read .*latin\.yaml"):
        read_yaml(tmp_path / "latin.yaml")


def test_suites_that_include_each_other_are_refused() -> None:
    changes = {"suites.other": BASE["suites"]["study"] | {"include": ["study"]}, "suites.study.include": ["other"]}
    assert complaint(changes) == "suites.other.include[0]: study includes other"


def test_a_run_that_nothing_measures_is_refused() -> None:
    changes = {FIRST + "seed": [0, 1], f"{EVALUATE}.0.only": {"seed": 0}}
    assert (
        complaint(changes) == f"{EVALUATE}: no task measures small-wanda-50-attention_mlp; add one that is for all runs"
    )


@pytest.mark.parametrize(
    ("task", "fields", "message"),
    [
        (asked(metric="zero-shot"), None, "[0].metric: 'zero-shot' is not possible; did you mean 'zero_shot'?"),
        ({"metric": 0, "data": "texts"}, None, "[0].metric: '0' is not possible; allowed: drift, perplexity, z"),
        ({"metric": "zero_shot"}, None, "[0].tasks: this key is missing"),
        (asked(tasks=["rte", "boolq", "rte"]), None, "[0].tasks: rte is there twice"),
        (asked(length=64), None, "[0].length: unknown key; "),
        (asked(task=["boolq"]), None, "[0].task: unknown key; did you mean 'tasks'? allowed: data, limit, metric"),
        (asked(shots=-1), None, "[0].shots: Input should be greater than or equal to 0"),
        (asked(data="texts"), QUESTIONS, "[0].data: none of boolq asks about a data set; article_descr"),
        (asked(tasks=["article_topic"]), QUESTIONS, "[0].data: this key is missing; article_topic asks about"),
        (asked(tasks=["article_topic"], data="untested"), QUESTIONS, "[0].data: data.untested has no split 'test'"),
        (asked(tasks=["article_topic"], data="texts"), None, "data.texts.questions: this key is missing; article"),
        (asked(tasks=["article_topic"], data="texts"), {}, "data.texts.questions.topic: this key is missing; a"),
        ({"metric": "drift", "data": "texts", "lenght": 64}, None, "[0].lenght: unknown key; did you mean 'length'?"),
    ],
)  # fmt: skip
def test_a_task_that_cannot_be_is_named(task: dict[str, Any], fields: Any, message: str) -> None:
    assert message in complaint({EVALUATE: [task], "data.texts.questions": fields})


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"recovery": "repair", "prune_inputs": "recovered"},
         "prune_inputs: recovered needs recovery reconstruct, and recovery is repair; use sparse"),
        ({"loss": "kl"}, "loss: kl is no loss to reconstruct with; allowed: mse, normalized_mse, cosine"),
        ({"recovery": "retrain", "loss": "mse"}, "loss: mse is no loss to retrain with; allowed: cross_entropy, kl"),
        ({"recovery": "retrain", "accumulation": 3},
         "accumulation: 2 sequences cannot be run in 3 parts; it is at most batch_size"),
        ({"flow": "official_matrix"}, "flow: official_matrix is a way to train window matrix with targets all"),
        ({"flow": "official_matrix", "window": "matrix", "targets": "q_proj"},
         "flow: official_matrix is a way to train window matrix with targets all"),
        ({"window": "matrix_exact", "flow": "sparse_dense"},
         "window: matrix_exact solves for flow dense and loss mse, and no other"),
        ({"window": "matrix_exact", "loss": "cosine"},
         "window: matrix_exact solves for flow dense and loss mse, and no other"),
        ({"window": "matrix_exact", "prune_inputs": "recovered"},
         "window: matrix_exact is solved on dense inputs; use prune_inputs dense"),
        ({"window": "matrix", "targets": "q_proj", "prune_inputs": "recovered"},
         "targets: with prune_inputs recovered windows are pruned as they are trained; "
         "window matrix needs targets all"),
        ({"window": "matrix_exact", "parametrization": "biases"},
         "parametrization: matrix_exact solves for whole matrices; use full"),
        ({"window": "key_up", "parametrization": "norms"}, "parametrization: window key_up holds no norms to train"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)  # fmt: skip
def test_parts_of_a_recovery_that_do_not_go_together_are_named(axes: dict[str, Any], message: str) -> None:
    assert complaint({FIRST + axis: value for axis, value in axes.items()}) == f"{RUNS}[0].{message}"


@pytest.mark.parametrize(
    "axes",
    [
        {"flow": "official_matrix", "window": "matrix"},
        {"window": "matrix_exact", "loss": "mse", "prune_inputs": "sparse"},
        {"window": "key_up", "parametrization": "biases"},
        {"window": "model", "flow": "sparse_local", "prune_inputs": "recovered"},
        {"accumulation": 2, "batch_size": 2},
        # what another recovery would be refused for
        {"recovery": "none", "loss": "kl", "window": 5, "flow": "official_matrix"},
        {"recovery": "retrain", "loss": "kl", "window": 5, "flow": "official_matrix"},
        {"recovery": "repair", "loss": "kl", "window": "matrix_exact", "parametrization": "norms"},
    ],
    ids=lambda axes: "-".join(map(str, axes.values())),
)
def test_parts_that_do_go_together_are_let_through(axes: dict[str, Any]) -> None:
    assert subject(**axes) is not None


def test_names_of_the_catalogue_are_suggested() -> None:
    assert "did you mean 'opt-125m'?" in complaint({FIRST + "model": "opt-125"})
    assert plan_of().config.data["c4"].hub is not None
