"""Keys change exactly when results do, and are the same everywhere and in every version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import pytest

from freelunch.plan.config import AXES, Axes, parse_config
from freelunch.plan.plan import make_plan
from freelunch.plan.spec import STAGES, parse_spec
from freelunch.plan.specs import DataSpec, PrunedSpec, ReconstructedSpec, RepairedSpec, RetrainedSpec
from freelunch.plan.yaml_files import read_yaml
from study import BASE, EVALUATE, FIRST, QUESTIONS, TRAIN, asked, plan_of, reconstructed, subject, trained

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests/tiny.yaml"

OF_PRUNED: dict[str, Any] = {
    "model": "wheeled", "calibration": "untested", "sequences": 9, "validation_sequences": 9, "length": 65,
    "sampling": "packed", "seed": 5, "criterion": "magnitude", "pattern": "51%", "allocation": "owl",
    "refinement": "dsnot", "prune_inputs": "sparse",
}  # fmt: skip
OF_TRAINING: dict[str, Any] = {
    "parametrization": "full", "targets": "q_proj", "training_sequences": 9, "optimizer": "sgd",
    "learning_rate": "auto", "schedule": "cosine", "warmup": 0.2, "epochs": 2, "batch_size": 3, "accumulation": 2,
    "clip": 1.0, "patience": 1,
}  # fmt: skip
OF_WINDOWS: dict[str, Any] = {"window": "block", "flow": "sparse_local", "loss": "cosine"}
SOURCES: dict[str, Any] = {
    "models.small.dtype": "float32", "models.small.random.seed": 1, "models.small.random.config.hidden_size": 120,
    "models.small.random.config.licence": "x",  # whatever a field of a mapping is called
    "data.texts.path": "moved.jsonl", "data.texts.splits.test": 0.2, "data.texts.text": "body",
    "data.texts.identifier": "title", "data.texts.separator": " ", "data.texts.max_documents": 10,
}  # fmt: skip

OF_TRAINED_MODELS: dict[str, Any] = {
    "data": "untested", "sequences": 17, "validation_sequences": 9, "length": 32, "seed": 1, "learning_rate": 0.02,
    "schedule": "cosine", "warmup": 0.2, "weight_decay": 0.1, "epochs": 2, "batch_size": 5, "clip": 1.0,
    "config": TRAIN["config"] | {"hidden_size": 64},
}  # fmt: skip


def test_keys_of_finished_results_stay() -> None:
    """One digest over the names of all specs of ``tiny.yaml`` but exports, as they were in version 0.1."""
    plan = make_plan(parse_config(read_yaml(TINY)))
    assert {spec.stage for spec in plan.specs.values()} == STAGES.keys() - {"shards"}
    kept = [manifest for manifest, spec in plan.specs.items() if spec.stage != "exported"]
    assert (
        sha256("\n".join(sorted(kept)).encode()).hexdigest()
        == "8553b0ec05967ba9789fb2a039a60e92fca2b466825e91d1d1ef93c4d92c53d3"
    )
    assert reconstructed().base.key == "7487d2e6"


def test_keys_do_not_depend_on_order_or_process() -> None:
    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: turned(item) for key, item in reversed(value.items())}
        return [turned(item) for item in value] if isinstance(value, list) else value

    assert set(make_plan(parse_config(turned(BASE))).specs) == set(plan_of().specs)
    code = (
        "import sys; from pathlib import Path; from freelunch.__main__ import load;"
        "print(*sorted(load([Path(sys.argv[1])]).specs), sep='\\n')"
    )
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONPATH": str(ROOT / "workflow"), "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code, str(TINY)], env=environment, capture_output=True, text=True)
        assert done.stdout.split() == sorted(make_plan(parse_config(read_yaml(TINY))).specs)


@pytest.mark.parametrize(("axis", "value"), OF_PRUNED.items(), ids=OF_PRUNED)
def test_axes_of_pruning_change_the_keys_of_pruned_and_recovered_models(axis: str, value: Any) -> None:
    before, after = reconstructed(), reconstructed(**{axis: value})
    assert before.pruned.key != after.pruned.key and before.key != after.key


@pytest.mark.parametrize(("axis", "value"), (OF_TRAINING | OF_WINDOWS).items(), ids=OF_TRAINING | OF_WINDOWS)
def test_axes_of_recovery_change_the_keys_of_the_recoveries_that_look_at_them(axis: str, value: Any) -> None:
    before, after = reconstructed(), reconstructed(**{axis: value})
    assert before.pruned.key == after.pruned.key and before.key != after.key
    retrained = [subject(recovery="retrain", **change) for change in ({}, {axis: value} if axis != "loss" else {})]
    assert isinstance(retrained[0], RetrainedSpec) and (retrained[0].key != retrained[1].key) == (axis in OF_TRAINING)
    assert subject(recovery="repair", **{axis: value}).key == subject(recovery="repair").key
    assert subject(recovery="none", **{axis: value}).key == subject(recovery="none").key
    if axis not in OF_WINDOWS:
        solved = [subject(window="matrix_exact", **change) for change in ({}, {axis: value})]
        counts = axis in ("parametrization", "targets", "training_sequences")
        assert (solved[0].key != solved[1].key) == counts == (solved[0] != solved[1])


def test_every_axis_is_known_to_change_a_key() -> None:
    single = {axis for axis, field in Axes.model_fields.items() if len(get_args(field.annotation)) == 1}
    known = {*OF_PRUNED, *OF_TRAINING, *OF_WINDOWS, *single, "recovery", "repair"}
    assert set(AXES) == known, "add the new axis to one of these"


def test_how_it_is_repaired_is_all_that_counts_for_a_repair() -> None:
    modes = [subject(recovery="repair", repair=mode) for mode in ("channel", "layer", "shrink")]
    assert all(isinstance(spec, RepairedSpec) for spec in modes)
    assert len({spec.key for spec in modes}) == 3 and len({spec.pruned.key for spec in modes}) == 1
    assert subject(recovery="repair") == modes[2] and modes[2].grams.dense == modes[2].pruned.dense
    assert subject(recovery="repair", pattern="60%").key != modes[2].key
    assert reconstructed(repair="layer").key == reconstructed().key


def test_criterion_and_pattern_do_not_change_the_dense_cache() -> None:
    before, after = reconstructed().pruned.dense, reconstructed(criterion="magnitude", pattern="2:4").pruned.dense
    assert before == after and before.key == after.key


@pytest.mark.parametrize(("path", "value"), SOURCES.items(), ids=SOURCES)
def test_what_shapes_a_source_changes_all_keys_downstream(path: str, value: Any) -> None:
    before, after = reconstructed(), reconstructed({path: value})
    assert before.pruned.dense.key != after.pruned.dense.key and before.key != after.key


@pytest.mark.parametrize(("key", "value"), OF_TRAINED_MODELS.items(), ids=OF_TRAINED_MODELS)
def test_what_shapes_a_training_changes_the_keys_of_the_model_and_downstream(key: str, value: Any) -> None:
    before, after = reconstructed(trained()), reconstructed(trained({key: value}))
    assert before.base.key != after.base.key and before.key != after.key


def test_a_trained_model_waits_for_its_data() -> None:
    plan, base = plan_of(trained()), reconstructed(trained()).base
    (data,) = base.upstream()
    assert isinstance(data, DataSpec) and data.manifest in plan.specs and base.resumed
    assert reconstructed(trained() | {"data.texts.text": "body"}).base.key != base.key
    assert reconstructed(trained() | {"data.texts.licence": "CC0"}).base.key == base.key


@pytest.mark.parametrize(
    ("task", "change"),
    [
        *(({"data": "texts", "length": 64}, change) for change in (
            {"data": "only_test"}, {"splits": ["validation"]}, {"length": 32}, {"sequences": 3}, {"metric": "drift"}
        )),
        *((asked(), change) for change in ({"tasks": ["rte"]}, {"limit": 5}, {"shots": 1})),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_measured_changes_the_key_of_the_evaluation_alone(task: Any, change: dict[str, Any]) -> None:
    before, after = (plan_of({EVALUATE: [each]}).runs["study"][-1].evaluation for each in (task, task | change))
    assert before.key != after.key and before.subject.key == after.subject.key


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("models.small.licence", "MIT"),
        ("models.hubbed.hub.pickled", True),
        ("models.small.shape", {"model_type": "llama"}),
        ("models.small.family", "llama"),
        ("data.texts.licence", "CC0"),
        ("data.texts.questions", QUESTIONS),
        ("dense.max_gib", 7),
        ("execution.device", "cuda"),
        ("execution.stream_tokens", 7),
        ("execution.zero_shot", "streaming"),
        ("suites.study.description", "words"),
        ("suites.study.figures", []),
        ("suites.study.defaults.pattern", "70%"),
        (FIRST + "pattern", "50.0%"),
        (f"{EVALUATE}.0.too_long", "skip"),
        (f"{EVALUATE}.0.only", {"criterion": "wanda"}),
    ],
)
def test_what_shapes_no_result_changes_no_key(path: str, value: Any) -> None:
    both = {FIRST + "model": ["small", "hubbed"]}
    assert set(plan_of(both).specs) == set(plan_of(both | {path: value}).specs)


def test_what_is_trained_is_written_in_one_way() -> None:
    assert subject(parametrization="norms+full + biases(add=0)", targets=" all ").key == subject().key
    assert subject(targets="v_proj+ q_proj +v_proj").training.targets == "q_proj + v_proj"


def test_a_recovery_has_a_loss_of_its_own_where_none_is_given() -> None:
    assert subject().training.loss == "mse" and subject(loss="mse") == subject()
    retrained = subject(recovery="retrain")
    assert retrained.training.loss == "cross_entropy" and retrained == subject(recovery="retrain", loss="cross_entropy")


def test_every_spec_is_read_back_from_its_dump() -> None:
    tasks = [asked(tasks=["article_topic", "boolq"], data="texts"), {"metric": "drift", "data": "texts", "length": 64}]
    plans = [plan_of({"data.texts.questions": QUESTIONS, EVALUATE: tasks}), make_plan(parse_config(read_yaml(TINY)))]
    for spec in (spec for plan in plans for spec in plan.specs.values()):
        again = parse_spec(json.loads(json.dumps(spec.model_dump(mode="json"))))
        assert again == spec and type(again) is type(spec) and again.manifest == spec.manifest


def test_a_folder_says_stage_model_and_method() -> None:
    spec = subject(window=2, pattern="50% per matrix")
    assert str(spec.folder) == f"results/reconstructed/small-wanda-50-matrix-2blocks-{spec.key}"
    assert len(spec.key) == 8 and spec.manifest == f"{spec.folder}/manifest.json"


def test_a_changed_spec_has_a_key_of_its_own() -> None:
    spec = subject()
    assert isinstance(spec, ReconstructedSpec) and isinstance(spec.pruned, PrunedSpec)
    assert spec.key != spec.changed(window="block").key == subject(window="block").key
