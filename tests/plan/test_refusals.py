"""What cannot be is refused in one line, with the key and what would be right."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from freelunch.errors import FreelunchError
from freelunch.plan.config import parse_config
from freelunch.plan.plan import make_plan
from freelunch.plan.yaml_files import read_yaml
from study import BASE, EVALUATE, FIRST, QUESTIONS, RUNS, TRAIN, asked, complaint, plan_of, subject, trained

STUDY, DRIFT = BASE["suites"]["study"], {"metric": "drift", "data": "texts"}
AXES: list[tuple[dict[str, Any], str]] = [
    ({"pattern": "7:8"}, "pattern: … 60 … multiple of 8 … small"),
    ({"pattern": 124}, "pattern: … 124 … 2:4 … in quotes"),
    ({"length": 256}, "length: 256 tokens exceed the context of small, 128"),
    ({"length": 1}, "length: Input should be greater than 1"),
    ({"window": 5}, "window: a window of 5 blocks is larger than the model, which has 4 (small)"),
    ({"window": "half"}, "window: … 'half' … attention_mlp … block"),
    ({"calibration": "only_test"}, "calibration: data.only_test has no split 'calibration'; allowed: test"),
    ({"criterion": "wander"}, "criterion: … 'wander' … did you mean 'wanda'? … magnitude"),
    ({"criterion": []}, "criterion: the list is empty"),
    ({"recovery": "reconstuct"}, "recovery: 'reconstuct' is not possible; did you mean 'reconstruct'? allowed: "),
    ({"flow": "sparse_lokal"}, "flow: … did you mean 'sparse_local'? … official_matrix"),
    ({"parametrization": "ful + norms"}, "parametrization: … did you mean 'full'? … mask_lora"),
    ({"targets": "q-proj"}, "targets: … 'q-proj' … q_proj + v_proj"),
    ({"training_sequences": 0}, "training_sequences: … greater than 0"),
    ({"warmup": float("nan")}, "warmup: "),
    ({"learning_rate": 0}, "learning_rate: a learning rate is auto, or a number above 0"),
    ({"learning_rate": "atuo"}, "learning_rate: a learning rate is auto, or a number above 0 (found 'atuo')"),
    ({"learning_rate": float("inf")}, "learning_rate: "),
    ({"seed": 2**31}, "seed: … less than 2147483648"),
    ({"epochs": 1.5}, "epochs: … 1.5"),
    ({"model": "opt-125"}, "model: there is no 'opt-125'; did you mean 'opt-125m'?"),
    ({"criterium": 1}, "criterium: unknown key; did you mean 'criterion'? allowed: "),
    # parts of a recovery that do not go together
    ({"recovery": "repair", "prune_inputs": "recovered"},
     "prune_inputs: recovered needs recovery reconstruct, and recovery is repair; use sparse"),
    ({"loss": "kl"}, "loss: kl is no loss to reconstruct with; allowed: mse, normalized_mse, cosine"),
    ({"recovery": "retrain", "loss": "mse"}, "loss: mse is no loss to retrain with; allowed: cross_entropy, kl"),
    ({"recovery": "retrain", "accumulation": 3},
     "accumulation: 2 sequences cannot be run in 3 parts; it is at most batch_size"),
    ({"flow": "official_matrix"}, "flow: official_matrix is a way to train window matrix with targets all"),
    ({"flow": "official_matrix", "window": "matrix", "targets": "q_proj"}, "flow: official_matrix is a way to train"),
    ({"window": "matrix_exact", "flow": "sparse_dense"}, "window: matrix_exact solves for flow dense and loss mse"),
    ({"window": "matrix_exact", "loss": "cosine"}, "window: matrix_exact solves for flow dense and loss mse"),
    ({"window": "matrix_exact", "prune_inputs": "recovered"},
     "window: matrix_exact is solved on dense inputs; use prune_inputs dense"),
    ({"window": "matrix", "targets": "q_proj", "prune_inputs": "recovered"},
     "targets: with prune_inputs recovered windows are pruned as they are trained; window matrix needs targets all"),
    ({"window": "matrix_exact", "parametrization": "biases"},
     "parametrization: matrix_exact solves for whole matrices; use full"),
    ({"window": "key_up", "parametrization": "norms"}, "parametrization: window key_up holds no norms to train"),
]  # fmt: skip
TRAINED: list[tuple[dict[str, Any], str]] = [
    ({"data": "txts"}, "data: there is no 'txts'; did you mean 'texts'?"),
    ({"data": "only_test"}, "data: data.only_test has no split 'calibration'; allowed: test"),
    ({"length": 129}, "length: 129 tokens exceed the context of other, 128"),
    ({"learning_rte": 1.0}, "learning_rte: unknown key; did you mean 'learning_rate'?"),
    ({"schedule": "cosin"}, "schedule: 'cosin' is not possible; did you mean 'cosine'?"),
    ({"learning_rate": "auto"}, "learning_rate: Input should be a valid number"),
    ({"sequences": None}, "sequences: this key is missing"),
    ({"config": TRAIN["config"] | {"hidden_size": 62}},
     "config: hidden_size, 62, is no multiple of num_attention_heads, 4; give head_dim"),
    ({"config": TRAIN["config"] | {"num_key_value_heads": 3}},
     "config: num_attention_heads, 4, is no multiple of num_key_value_heads, 3"),
    ({"config": TRAIN["config"] | {"vocab_size": 256}}, "config.vocab_size: must be 257 or more"),
    ({"config": {"model_type": "llama"}}, "config.num_hidden_layers: this key is missing"),
]  # fmt: skip
TASKS: list[tuple[dict[str, Any], str]] = [
    (asked(metric="zero-shot"), "metric: 'zero-shot' is not possible; did you mean 'zero_shot'?"),
    ({"metric": 0, "data": "texts"}, "metric: '0' is not possible; allowed: drift, perplexity, z"),
    ({"metric": "zero_shot"}, "tasks: this key is missing"),
    (asked(tasks=["rte", "boolq", "rte"]), "tasks: rte is there twice"),
    (asked(length=64), "length: unknown key; "),
    (asked(task=["boolq"]), "task: unknown key; did you mean 'tasks'? allowed: data, limit, metric"),
    (asked(shots=-1), "shots: Input should be greater than or equal to 0"),
    (asked(data="texts"), "data: none of boolq asks about a data set; article_descr"),
    (asked(tasks=["article_topic"]), "data: this key is missing; article_topic asks about"),
    (asked(tasks=["article_topic"], data="untested"), "data: data.untested has no split 'test'"),
    (DRIFT | {"lenght": 64}, "lenght: unknown key; did you mean 'length'?"),
    ({"data": "untested"}, "splits: data.untested has no split 'test'"),
    ({"data": "texts", "splits": ["tset"]}, "splits[0]: 'tset' is not possible; did you mean 'test'?"),
    ({"data": "texts", "length": 129}, "length: 129 tokens exceed the context of small, 128"),
    ({"data": "texts", "too_long": "ignore"}, "too_long: … refuse, skip"),
    ({"data": "texts", "length": 64, "only": {"criterion": "wnda"}}, "only: … did you mean 'wanda'?"),
    ({"data": "texts", "length": 64, "only": {"seed": []}}, "only: … seed: the list is empty"),
    ({"data": "texts", "length": 64, "only": {"seed": 1}}, "only: no run of the suite is so"),
]
ELSEWHERE: list[tuple[dict[str, Any], str]] = [
    ({"default_suite": "studi"}, "default_suite: … 'studi' … did you mean 'study'?"),
    ({"suits": 1}, "suits: unknown key; did you mean 'suites'? allowed: "),
    ({"defaults": {"epoch": 1}}, "defaults.epoch: unknown key; did you mean 'epochs'? allowed: "),
    ({"suites.study.tabels": 1}, "suites.study.tabels: unknown key; did you mean 'tables'? allowed: "),
    ({"suites.study.defaults.lenght": 1}, "suites.study.defaults.lenght: unknown key; did you mean 'length'?"),
    ({"suites.study.defaults": {}}, f"{RUNS}[0].model: this key is missing"),
    ({"suites.study.tables": ["perplexty"]}, "suites.study.tables[0]: there is no 'perplexty'; did you mean 'perplex"),
    ({"suites.study.figures": ["gain", "gian"]}, "suites.study.figures[1]: … did you mean 'gain'?"),
    ({"suites.study.include": ["study"]}, "suites.study.include[0]: study includes study"),
    ({"suites.other": STUDY | {"include": ["study"]}, "suites.study.include": ["other"]},
     "suites.other.include[0]: study includes other"),
    ({"suites.pruned": STUDY}, "suites.pruned: a suite cannot have the name of a rule or of a folder"),
    ({EVALUATE: [{"data": "texts", "length": 64}] * 2}, f"{EVALUATE}[1]: perplexity of texts test at length 64 is mea"),
    ({EVALUATE: [asked(tasks=["rte", "boolq"]), asked(limit=3)]}, f"{EVALUATE}[1].tasks: boolq is measured already"),
    ({EVALUATE: [{"data": "texts", "length": 129, "too_long": "skip"}]}, f"{EVALUATE}: every task is too long for"),
    ({EVALUATE: ["perplexity"]}, f"{EVALUATE}[0]: "),
    ({FIRST + "seed": [0, 1], f"{EVALUATE}.0.only": {"seed": 0}},
     f"{EVALUATE}: no task measures small-wanda-50-attention_mlp; add one that is for all runs"),
    ({EVALUATE: [asked(tasks=["article_topic"], data="texts")]}, "data.texts.questions: this key is missing; article"),
    ({EVALUATE: [asked(tasks=["article_topic"], data="texts")], "data.texts.questions": {}},
     "data.texts.questions.topic: this key is missing; a"),
    ({"models.small.licens": 1}, "models.small.licens: unknown key; did you mean 'licence'? allowed: "),
    ({"models.small.random.sed": 1}, "models.small.random.sed: unknown key; did you mean 'seed'? allowed: "),
    ({"models.small.dtype": "float61"}, "models.small.dtype: … did you mean 'float16'? allowed: bfloat16, float16"),
    ({"models.small.path": "here"},
     "models.small: give exactly one of wheel, hub, path, random, train; found path, random"),
    ({"models.hubbed.hub": None}, "models.hubbed: … exactly one of wheel, hub, path, random, train; found none"),
    ({"models.wheeled.wheel.sha256": "abc"}, "models.wheeled.wheel.sha256: … 64 … 'abc'"),
    ({"models.hubbed.hub.revision": "main"}, "models.hubbed.hub.revision: … 40 … 'main'"),
    ({"models.hubbed.hub.revison": 1}, "models.hubbed.hub.revison: unknown key; did you mean 'revision'? allowed: "),
    ({"models.hubbed.hub.id": "../x"}, "models.hubbed.hub.id: … '../x'"),
    ({"data.texts.spltis": 1}, "data.texts.spltis: unknown key; did you mean 'splits'? allowed: "),
    ({"data.texts.splits": {"calibration": 0.5, "validaton": 0.5}}, "data.texts.splits… validaton … 'validation'?"),
    ({"data.texts.splits": {"calibration": 0.9, "test": 0.2}}, "data.texts: … add up to at most 1"),
    ({"data.texts.splits": {"calibration": 0.9, "test": "x"}}, "data.texts: … all names, or fractions"),
    ({"data.texts.path": None}, "data.texts: … exactly one of wheel, hub, path; found none"),
    ({"data.texts.random": {"config": {}}}, "data.texts.random: unknown key"),
    ({"data.texts.train": TRAIN}, "data.texts.train: unknown key"),
    ({"data.texts.questions": {"titel": "title"}}, "data.texts.questions.titel: unknown key; did you mean 'title'?"),
    ({"data.only_test.hub.pickled": True}, "data.only_test: … no pickled weights"),
    ({"images": {"x": {"path": "x", "splits": {}, "sizze": 1, "size": 1, "classes": 2}}},
     "images.x.sizze: unknown key; did you mean 'size'? allowed: "),
    ({"dense.max_gib": float("inf")}, "dense.max_gib: … finite"),
    ({"execution.device": "gpu"}, "execution.device: 'gpu' is not possible; … allowed: auto, cpu, cuda"),
    ({"execution.devcie": 1}, "execution.devcie: unknown key; did you mean 'device'? allowed: "),
]  # fmt: skip
REFUSALS = [
    *(({FIRST + axis: value for axis, value in axes.items()}, f"{RUNS}[0].{message}") for axes, message in AXES),
    # whether a run needs it or not
    *(({"models.other": trained(change)["models.small"]}, f"models.other.train.{text}") for change, text in TRAINED),
    *(({EVALUATE: [task], "data.texts.questions": QUESTIONS}, f"{EVALUATE}[0].{message}") for task, message in TASKS),
    *ELSEWHERE,
]


@pytest.mark.parametrize(("changes", "message"), REFUSALS, ids=[message[:50] for _, message in REFUSALS])
def test_what_cannot_be_is_named_with_what_can(changes: dict[str, Any], message: str) -> None:
    """The message starts with the first of the parts that an ellipsis is between, and has the others."""
    first, *parts = message.split("…")
    found = complaint(changes)
    assert found.startswith(first.rstrip()) and not [part for part in parts if part.strip() not in found], found


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


def test_every_problem_is_a_line_of_its_own() -> None:
    message = complaint({"dense.max_gib": -1, "execution.devise": "cpu", "models.small.dtype": "int8"})
    assert len(message.splitlines()) == 3


@pytest.mark.parametrize(("raw", "kind"), [(None, "NoneType"), ([], "list"), ("text", "str")])
def test_a_config_that_is_no_mapping_is_refused(raw: Any, kind: str) -> None:
    with pytest.raises(FreelunchError, match=f"the config is a {kind}, not a mapping"):
        parse_config(raw)


def test_files_that_are_not_there_or_cannot_be_read_are_named(tmp_path: Path) -> None:
    message = complaint({"models.local": {"path": str(tmp_path)}, FIRST + "model": "local"})
    assert message.startswith("models.local.path: cannot read") and str(tmp_path / "config.json") in message
    (tmp_path / "latin.yaml").write_bytes("a: é".encode("latin-1"))
    for name in ("absent", "latin"):
        with pytest.raises(FreelunchError, match=rf"cannot read .*{name}\.yaml"):
            read_yaml(tmp_path / f"{name}.yaml")


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


def test_names_of_the_catalogue_need_no_entry() -> None:
    assert plan_of().config.data["c4"].hub is not None
