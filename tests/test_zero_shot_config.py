"""Zero-shot tasks in the config: what is refused when the plan is made, and which keys they change."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from freelunch.costs import cost
from freelunch.specs import EvaluationSpec, QuestionsSpec, parse_spec
from test_config import complaint, plan_of

FIELDS = {"title": "title", "description": "line", "topic": "field"}
EVALUATE = "suites.study.evaluate"


def asked(**changes: Any) -> dict[str, Any]:
    return {"metric": "zero_shot", "tasks": ["boolq"]} | changes


@pytest.mark.parametrize(
    ("task", "fields", "message"),
    [
        ({"metric": "zero-shot", "tasks": ["boolq"]}, None, "[0].metric: 'zero-shot' is not possible; did you mean 'z"),
        ({"metric": 0, "data": "texts"}, None, "[0].metric: '0' is not possible; allowed: drift, perplexity, zero_sh"),
        ({"metric": "zero_shot"}, None, "[0].tasks: this key is missing"),
        (asked(tasks=[]), None, "[0].tasks: Tuple should have at least 1 item"),
        (asked(tasks=["rte", "boolq", "rte"]), None, "[0].tasks: rte is there twice"),
        (asked(length=64), None, "[0].length: unknown key; "),
        (asked(task=["boolq"]), None, "[0].task: unknown key; did you mean 'tasks'? allowed: data, limit, metric"),
        (asked(limit=0), None, "[0].limit: Input should be greater than 0"),
        (asked(shots=-1), None, "[0].shots: Input should be greater than or equal to 0"),
        (asked(data="texts"), FIELDS, "[0].data: none of boolq asks about a data set; article_descr"),
        (asked(tasks=["article_topic"]), FIELDS, "[0].data: this key is missing; article_topic asks about a data set"),
        (asked(tasks=["article_topic"], data="txts"), FIELDS, "[0].data: there is no 'txts'; did you mean 'texts'?"),
        (asked(tasks=["article_topic"], data="untested"), FIELDS, "[0].data: data.untested has no split 'test'"),
        (asked(tasks=["article_topic"], data="texts"), None, "data.texts.questions: this key is missing; article"),
        (asked(tasks=["article_topic"], data="texts"), {}, "data.texts.questions.topic: this key is missing; a"),
        ({"metric": "drift", "data": "texts", "lenght": 64}, None, "[0].lenght: unknown key; did you mean 'length'?"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_named(task: dict[str, Any], fields: Any, message: str) -> None:
    assert message in complaint({EVALUATE: [task], "data.texts.questions": fields})


def test_a_task_that_two_entries_name_is_refused() -> None:
    tasks = [asked(tasks=["rte", "boolq"]), asked(limit=3)]
    assert "suites.study.evaluate[1].tasks: boolq is measured already" in complaint({EVALUATE: tasks})


def test_a_field_of_questions_that_is_misspelt_is_named() -> None:
    message = complaint({"data.texts.questions": {"titel": "title"}})
    assert "data.texts.questions.titel: unknown key; did you mean 'title'?" in message


def test_questions_are_made_only_where_they_are_asked_and_change_no_other_key() -> None:
    before = plan_of()
    with_fields = plan_of({"data.texts.questions": FIELDS})
    assert set(with_fields.specs) == set(before.specs)
    tasks = [{"data": "texts", "length": 64}, asked(tasks=["article_topic"], data="texts")]
    plan = plan_of({"data.texts.questions": FIELDS, EVALUATE: tasks})
    added = {spec.stage for manifest, spec in plan.specs.items() if manifest not in before.specs}
    assert added == {"questions", "evaluation"}
    evaluation = plan.runs["study"][-1].evaluation
    (spec,) = evaluation.questions.values()
    assert list(evaluation.texts) == list(evaluation.questions) == ["texts"]
    assert spec.upstream() == [evaluation.texts["texts"]] and spec in evaluation.upstream()
    other = plan_of({"data.texts.questions": FIELDS | {"seed": 1}, EVALUATE: tasks})
    assert other.runs["study"][-1].evaluation.questions["texts"].key != spec.key


@pytest.mark.parametrize("change", [{"tasks": ["rte"]}, {"limit": 5}, {"shots": 1}])
def test_what_is_asked_changes_the_key_of_the_evaluation_alone(change: dict[str, Any]) -> None:
    before, after = (plan_of({EVALUATE: [task]}).runs["study"][-1].evaluation for task in (asked(), asked(**change)))
    assert before.key != after.key and before.subject.key == after.subject.key


@pytest.mark.parametrize("setting", [{"execution.zero_shot": "streaming"}, {"execution.run_model_code": True}])
def test_how_questions_are_asked_changes_no_key(setting: dict[str, Any]) -> None:
    assert set(plan_of({EVALUATE: [asked()]}).specs) == set(plan_of({EVALUATE: [asked()]} | setting).specs)


def test_specs_are_read_back_from_their_dumps() -> None:
    drift = {"metric": "drift", "data": "texts", "length": 64}
    tasks = [asked(tasks=["article_topic", "boolq"], data="texts", limit=3), drift]
    plan = plan_of({"data.texts.questions": FIELDS, EVALUATE: tasks})
    for spec in plan.specs.values():
        if isinstance(spec, EvaluationSpec | QuestionsSpec):
            again = parse_spec(json.loads(json.dumps(spec.model_dump(mode="json"))))
            assert again == spec and again.manifest == spec.manifest


def test_costs_grow_with_what_is_asked() -> None:
    def need(task: dict[str, Any], **execution: Any) -> Any:
        plan = plan_of({EVALUATE: [task]} | {f"execution.{key}": value for key, value in execution.items()})
        return cost(plan.runs["study"][-1].evaluation, plan.config)

    assert need(asked(limit=20)).operations == 2 * need(asked(limit=10)).operations > 0
    assert need(asked(tasks=["rte"])).operations < need(asked(tasks=["rte", "hellaswag"])).operations
    assert need(asked(tasks=["gsm8k"]), zero_shot="streaming").operations > need(asked(tasks=["gsm8k"])).operations
    assert need(asked(), zero_shot="auto").host == need(asked(), zero_shot="whole").host
    assert need(asked(), zero_shot="whole", stream_tokens=10**9).host > 32 * 2**30
    assert (
        need(asked(), zero_shot="auto", stream_tokens=10**9).host
        == need(asked(), zero_shot="streaming", stream_tokens=10**9).host
    )


def test_the_plan_imports_no_lm_eval() -> None:
    code = "import sys, freelunch.plan, freelunch.__main__; print('lm_eval' in sys.modules, 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
