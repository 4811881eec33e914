"""Questions about articles: what is asked, and of which articles."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from articles import TOPICS, article, articles, config_of, records
from freelunch.errors import FreelunchError
from freelunch.inputs.questions import (
    FOLDER,
    QUESTION_SETS,
    WORDS,
    Article,
    beginning,
    descriptions,
    last_words,
    topics,
)
from freelunch.plan.config import ExecutionConfig, parse_config
from freelunch.plan.plan import make_plan
from freelunch.plan.specs import QuestionsSpec
from freelunch.results.artifacts import Artifact
from freelunch.results.stage import Stage
from freelunch.stages.data import make as prepare_data
from freelunch.stages.questions import make as questions

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("make", [descriptions, topics])
def test_choices_are_four_different_strings_and_the_answer_is_the_articles_own(make: Any) -> None:
    pool = articles()
    by_id = {each.id: each for each in pool}
    asked = make(pool, 0)
    for question in asked:
        choices = question["choices"]
        assert len(choices) == len({choice.casefold() for choice in choices}) == 4
        own = by_id[question["id"]].description if make is descriptions else by_id[question["id"]].topic
        assert choices[question["answer"]] == own
    assert len({question["answer"] for question in asked}) == 4  # the place of the answer tells nothing
    assert make(pool, 0) == asked and make(pool, 1) != asked
    kept = {each["id"]: each for each in make(pool[:-1], 0)}
    assert kept.keys() <= {each["id"] for each in asked}


def test_a_line_that_two_articles_share_is_no_wrong_answer_of_either() -> None:
    pool = [Article(str(i), "A text.", f"T{i}", line) for i, line in enumerate(["A bird", "a bird", "B", "C", "D"])]
    for seed in range(20):
        for question in descriptions(pool, seed):
            assert len({choice.casefold() for choice in question["choices"]}) == 4
    with pytest.raises(FreelunchError, match="descriptions of the test split: 3 are different, 4 are needed"):
        descriptions(pool[:4], 0)


def test_topics_are_answers_equally_often_from_the_first_question_on() -> None:
    pool = articles()
    counts = Counter(each.topic for each in pool)
    assert len(set(counts.values())) > 1  # they are not equally frequent to begin with
    asked = topics(pool, 0)
    answers = [question["choices"][question["answer"]] for question in asked]
    assert Counter(answers) == dict.fromkeys(TOPICS, min(counts.values()))
    assert len(set(answers[:5])) == 5
    assert not [each for each in topics([*pool, article(99)], 0) if each["id"] == "99"]


def test_last_words_occur_before_and_end_the_text() -> None:
    texts = {
        "kept": "The bridge is old. Few know the bridge.",
        "new word": "The bridge is old. Few know the river.",
        "number": "The year 1901 was cold. It began in 1901.",
        "short": "It is so, and it is so.",
        "part of a word": "The bridges are old. Few know a bridge.",
        "too far": "bridge " + "word " * (WORDS + 1) + "of the bridge",
    }
    asked = last_words([Article(name, text) for name, text in texts.items()], 0)
    assert asked == [{"id": "kept", "context": "The bridge is old. Few know the", "word": "bridge"}]


def test_a_beginning_is_one_sentence_of_few_words() -> None:
    assert beginning("Sodium is an element; it has symbol Na. It is soft.") == "Sodium is an element; it has symbol Na."
    assert beginning("J. S. Bach was born in 1685. He wrote.") == "J. S. Bach was born in 1685."
    assert beginning("word " * 50) == " ".join(["word"] * 30)


def test_the_files_of_local_tasks_are_those_that_questions_are_made_for() -> None:
    files = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.yaml")}
    assert files.keys() == QUESTION_SETS.keys()
    for name, task in files.items():
        assert task["task"] == name and task["num_fewshot"] == 0 and task["test_split"] == "test"
        assert isinstance(task["metadata"]["chance"], float) and "hance" in (FOLDER / f"{name}.yaml").read_text()
        known = {"text", "title", "choices", "answer", "context", "word"}
        assert set(re.findall(r"{{(\w+)}}", str(task))) <= known


def made(tmp_path: Path, fields: dict[str, Any], count: int = 60) -> Artifact:
    (run,) = make_plan(parse_config(config_of(tmp_path, fields, count))).runs["tiny"]
    (spec,) = run.evaluation.questions.values()
    assert isinstance(spec, QuestionsSpec)
    prepare_data(Stage(spec.data, tmp_path, ExecutionConfig(device="cpu"), "code"))
    questions(Stage(spec, tmp_path, ExecutionConfig(device="cpu"), "code"))
    return Artifact(tmp_path / spec.folder, spec)


def read(artifact: Artifact, task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in artifact.file(f"{task}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_stage_asks_about_the_test_split_alone(tmp_path: Path) -> None:
    fields = {"title": "name", "description": "line", "topic": "field", "no_topic": ["Markets"]}
    artifact = made(tmp_path, fields)
    split = (tmp_path / "results/data").glob("*/test.jsonl")
    test = [json.loads(line) for line in next(split).read_text(encoding="utf-8").splitlines()]
    lines = {record["name"]: record["line"] for record in records(60)}
    asked = read(artifact, "article_description")
    assert [question["id"] for question in asked] == [document["id"] for document in test]
    shown = {choice for question in asked for choice in question["choices"]}
    assert shown <= {lines[document["id"]] for document in test} and len(test) == 30
    about = artifact.manifest["questions"]
    assert about["article_topic"]["most_common_answer"] == 0.25 and about["article_description"]["questions"] == 30
    assert "Markets" not in str(read(artifact, "article_topic"))
    assert {each["word"] for each in read(artifact, "article_last_word")} == {"thing"}


def test_only_what_the_config_names_is_asked(tmp_path: Path) -> None:
    assert made(tmp_path, {}).files == ["article_last_word.jsonl"]


def test_a_field_that_records_lack_is_named(tmp_path: Path) -> None:
    message = r"data.documents.questions.topic: a record has no field 'topic'; fields found: field, line, name, text"
    with pytest.raises(FreelunchError, match=message):
        made(tmp_path, {"topic": "topic"})
