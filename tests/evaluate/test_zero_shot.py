"""Zero-shot tasks: stock tasks of lm-eval on small local data, local tasks through the stages, and what goes wrong."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from lm_eval.tasks import TaskManager

from articles import config_of
from freelunch.engine.overlays import InMemory
from freelunch.engine.streaming import Network
from freelunch.errors import FreelunchError
from freelunch.evaluate import zero_shot
from freelunch.evaluate.lm import StreamingLM
from freelunch.inputs.models import byte_tokenizer
from freelunch.plan.config import ExecutionConfig, parse_config
from freelunch.plan.plan import Plan, make_plan, walk
from freelunch.plan.specs import DataSpec, EvaluationSpec, ModelSpec, QuestionsSpec
from freelunch.results.artifacts import Artifact
from freelunch.results.stage import Stage
from freelunch.stages.collect import rows_of
from freelunch.stages.data import make as prepare_data
from freelunch.stages.evaluation import make as evaluate
from freelunch.stages.models import make as prepare_model
from freelunch.stages.questions import make as questions
from tiny import random_model

LETTERS = "ABCD"


STOCK = Path(lm_eval.tasks.__file__).parent
ASKED = ("arc", "super_glue/boolq", "glue/rte", "hellaswag", "winogrande", "openbookqa", "gsm8k", "humaneval")
PAPER = ("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")


@cache
def some_tasks(include_path: Path, include_defaults: bool) -> TaskManager:
    """lm-eval's index, of those of its own tasks that are asked here: that of all takes long."""
    own = [STOCK / name for name in ASKED] if include_defaults else []
    return TaskManager(include_path=[*own, include_path], include_defaults=False)


@pytest.fixture(autouse=True)
def _one_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The index is read once; the cache of data sets is this test's own."""
    monkeypatch.setattr(zero_shot, "TaskManager", some_tasks)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_dataset(folder: Path, subset: str, split: str, rows: list[dict[str, Any]]) -> None:
    """A data set as the hub has it: parquet files, and a card that names them, and those of its other subsets."""
    (folder / subset).mkdir(parents=True)
    readme = folder / "README.md"
    card = readme.read_text(encoding="utf-8").removesuffix("---\n") if readme.exists() else "---\nconfigs:\n"
    card += f"- config_name: {subset}\n  data_files:\n"
    for name, its in {"train": rows[:2], split: rows}.items():
        pyarrow.parquet.write_table(pa.Table.from_pylist(its), folder / subset / f"{name}-00000-of-00001.parquet")
        card += f"  - split: {name}\n    path: {subset}/{name}-*\n"
    readme.write_text(f"{card}---\n", encoding="utf-8")


WORDS = ("a cup", "the lid of an old pot", "sun", "two long letters", "stones")
ENDINGS = ("cuts it [substeps] twice.", "sits.", "reads a letter to the heron, and leaves.", "waits for [step] rain.")
"""With the marks of WikiHow, which are not shown to the model."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small data in the formats of the first paper's tasks and ``gsm8k``, under the names that lm-eval asks for."""
    choices = [3, 4, 4, 5, 4, 4]
    arc = [
        {
            "id": str(i), "question": f"What is thing {i}?", "answerKey": LETTERS[i % 3],
            "choices": {"text": [f"a thing {j}" for j in range(n)], "label": list("ABCDE"[:n])},
        }
        for i, n in enumerate(choices)
    ]  # fmt: skip
    write_dataset(tmp_path / "allenai/ai2_arc", "ARC-Easy", "test", arc)
    boolq = [
        {"question": f"is {i} a number", "passage": f"The number {i} is one.", "idx": i, "label": i % 2}
        for i in range(5)
    ]
    write_dataset(tmp_path / "aps/super_glue", "boolq", "validation", boolq)
    sums = [{"question": f"What is {i} and 1?", "answer": f"It is one more. #### {i + 1}"} for i in range(7)]
    write_dataset(tmp_path / "openai/gsm8k", "main", "test", sums)
    arc = [
        {
            "id": str(i), "question": f"Why is thing {i}?", "answerKey": str(1 + i % 4),
            "choices": {"text": [f"reason {j}" for j in range(4)], "label": list("1234")},
        }
        for i in range(5)
    ]  # fmt: skip
    write_dataset(tmp_path / "allenai/ai2_arc", "ARC-Challenge", "test", arc)
    rte = [{"sentence1": f"{i} is odd.", "sentence2": f"{i} is even.", "label": i % 2, "idx": i} for i in range(5)]
    write_dataset(tmp_path / "nyu-mll/glue", "rte", "validation", rte)
    hellaswag = [
        {
            "ind": i, "activity_label": f"Cutting {i}", "ctx_a": f"[header] How to cut {i} [title] Take a knife.",
            "ctx_b": "a man", "ctx": "not asked", "endings": [ENDINGS[(i + j) % 4] for j in range(4)],
            "source_id": f"wikihow~{i}", "split": "val", "split_type": "indomain", "label": str(i // 3 % 4),
        }
        for i in range(11)
    ]  # fmt: skip
    write_dataset(tmp_path / "Rowan/hellaswag", "default", "validation", hellaswag)
    winogrande = [
        {"sentence": f"Cup {i} is not in the box, for the _ is too small .", "option1": "box", "option2": WORDS[i % 5],
         "answer": str(1 + i % 2)}
        for i in range(10)
    ]  # fmt: skip
    write_dataset(tmp_path / "allenai/winogrande", "winogrande_xl", "validation", winogrande)
    openbookqa = [
        {
            "id": str(i), "question_stem": f"Plant {i} grows towards", "answerKey": " " * (i % 2) + LETTERS[i // 3 % 4],
            "choices": {"text": [WORDS[(i + j) % 5] for j in range(4)], "label": list(LETTERS)},
        }
        for i in range(11)
    ]  # fmt: skip
    write_dataset(tmp_path / "allenai/openbookqa", "main", "test", openbookqa)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written_out(name: str) -> list[tuple[list[tuple[str, str]], list[str], int]]:
    """The questions that ``hub`` has under a name, by hand.

    Of each the contexts with what is to be likely behind them, the choices that are weighed, and the right one.
    """
    shown = ("cuts it twice.", "sits.", "reads a letter to the heron, and leaves.", "waits for rain.")
    questions = []
    for i in range(10 if name == "winogrande" else 11):
        if name == "winogrande":
            begun = [f"Cup {i} is not in the box, for the {word}" for word in ("box", WORDS[i % 5])]
            questions.append(([(context, " is too small .") for context in begun], begun, i % 2))
            continue
        choices = [shown[(i + j) % 4] if name == "hellaswag" else WORDS[(i + j) % 5] for j in range(4)]
        context = f"Cutting {i}: How to cut {i}. Take a knife. A man"
        context = context if name == "hellaswag" else f"Plant {i} grows towards"
        questions.append(([(context, f" {choice}") for choice in choices], choices, i // 3 % 4))
    return questions


def log_likelihood(model: Any, context: str, continuation: str) -> float:
    """Of a continuation behind its context, of which one token is a byte."""
    tokens = byte_tokenizer().encode(context + continuation)
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    return sum(logits[place - 1, tokens[place]].item() for place in range(len(context), len(tokens)))


def random_llama() -> Any:
    return random_model("llama", max_position_embeddings=256, vocab_size=320)


def tiny_model() -> StreamingLM:
    model = random_llama()
    network = Network(model.config, InMemory(dict(model.state_dict())), model.dtype)
    return StreamingLM(network, byte_tokenizer(), 256)


def by_task(entries: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(entry["dataset"], entry["metric"]): entry for entry in entries}


def test_tasks_of_the_paper_give_accuracies_chance_and_their_mean(hub: Path) -> None:
    tasks = zero_shot.load_tasks(PAPER, {}, hub)
    entries = zero_shot.ask(tiny_model(), tasks, limit=None)
    found = by_task(entries)
    normalised = {"hellaswag", "arc_easy", "arc_challenge", "openbookqa"}
    assert found.keys() == {(task, metric) for task in PAPER for metric in ("acc", "chance")} | {
        (task, "acc_norm") for task in normalised
    }
    chance = {"winogrande": 1 / 2, "rte": 1 / 2, "boolq": 1 / 2, "arc_easy": (1 / 3 + 4 / 4 + 1 / 5) / 6}
    assert {task: found[task, "chance"]["value"] for task in PAPER} == pytest.approx(
        dict.fromkeys(PAPER, 1 / 4) | chance
    )
    of_test = ("arc_easy", "arc_challenge", "openbookqa")
    assert {task for task in PAPER if found[task, "acc"]["split"] == "test"} == set(of_test)
    hits = round(found["boolq", "acc"]["value"] * 5)
    assert found["boolq", "acc"] == {
        "metric": "acc", "dataset": "boolq", "split": "validation", "length": None, "position": None,
        "value": hits / 5, "stderr": pytest.approx(math.sqrt(hits / 5 * (1 - hits / 5) / 4)), "examples": 5, "shots": 0,
    }  # fmt: skip
    accuracies = [found[task, "acc"] for task in PAPER]
    mean = sum(each["value"] for each in accuracies) / 7, math.hypot(*(each["stderr"] for each in accuracies)) / 7
    assert zero_shot.mean_accuracy(entries) == pytest.approx(mean)
    about = zero_shot.about_tasks(tasks)["tasks"]
    assert about["arc_easy"]["data"] == ["allenai/ai2_arc", "ARC-Easy"] and about["boolq"]["version"] == 2.0


@pytest.mark.parametrize("name", ["hellaswag", "openbookqa", "winogrande"])
def test_accuracies_are_those_of_the_likeliest_answers(name: str, hub: Path) -> None:
    tasks = zero_shot.load_tasks([name], {}, hub)
    scores = {entry["metric"]: entry["value"] for entry in zero_shot.ask(tiny_model(), tasks, limit=None)}
    questions, model = written_out(name), random_llama()
    # for winogrande the contexts differ, and what is to be likely behind them is the same
    assert [each.args for each in tasks[name].instances] == [pair for asked, _, _ in questions for pair in asked]
    right: dict[str, list[bool]] = {"acc": [], "acc_norm": []}
    for asked, choices, answer in questions:
        values = [log_likelihood(model, *pair) for pair in asked]
        by_length = [value / len(choice) for value, choice in zip(values, choices, strict=True)]
        right["acc"].append(values.index(max(values)) == answer)
        right["acc_norm"].append(by_length.index(max(by_length)) == answer)
    wanted = {metric: sum(hits) / len(questions) for metric, hits in right.items()}
    assert 0 < wanted["acc"] < 1 and wanted["acc"] != wanted["acc_norm"]
    assert scores["acc"] == pytest.approx(wanted["acc"])
    assert scores.get("acc_norm", wanted["acc_norm"]) == pytest.approx(wanted["acc_norm"])
    assert ("acc_norm" in scores) == (name != "winogrande")


def test_a_limit_takes_the_first_examples(hub: Path) -> None:
    entries = by_task(zero_shot.ask(tiny_model(), zero_shot.load_tasks(["arc_easy"], {}, hub), limit=3))
    assert {entry["examples"] for entry in entries.values()} == {3}
    assert entries["arc_easy", "chance"]["value"] == pytest.approx((1 / 3 + 2 / 4) / 3)


def test_written_answers_are_scored_in_every_way_that_a_task_reads_them(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    monkeypatch.setattr(model, "generate_until", lambda requests: ["So it is #### 3"] * len(requests))
    entries = zero_shot.ask(model, zero_shot.load_tasks(["gsm8k"], {}, hub, shots=0), limit=4)
    # of 1, 2, 3 and 4 the third
    assert [(entry["metric"], entry["position"], entry["shots"], entry["value"]) for entry in entries] == [
        ("exact_match", "strict-match", 0, 0.25), ("exact_match", "flexible-extract", 0, 0.25)
    ]  # fmt: skip
    assert zero_shot.mean_accuracy(entries) is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("arc_esay", {}, "zero-shot task arc_esay: lm-eval has no such task; did you mean 'arc_easy'?"),
        ("ai2_arc", {}, "zero-shot task ai2_arc: stands for several; name them one by one: arc_challenge, arc_easy"),
        ("humaneval", {}, "task humaneval: runs code that the model wrote; set execution.run_model_code: true"),
        ("rte", {}, "zero-shot task rte: data set nyu-mll/glue/rte: HF_HUB_OFFLINE is set and the cache lacks this"),
    ],
)
def test_what_cannot_be_asked_is_one_line_with_the_task(
    name: str, options: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FreelunchError) as caught:
        zero_shot.load_tasks([name], {}, tmp_path, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_data_set_without_a_split_is_named(hub: Path) -> None:
    card = hub / "aps/super_glue/README.md"
    card.write_text(card.read_text(encoding="utf-8").replace("split: train", "split: other"), encoding="utf-8")
    with pytest.raises(FreelunchError, match="task boolq: data set aps/super_glue/boolq lacks 'train'"):
        zero_shot.load_tasks(["boolq"], {}, hub)


def test_failures_of_the_hub_and_of_packages_are_told_apart(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, message in (
        (
            ConnectionError("Couldn't reach 'aps/super_glue' on the Hub"),
            "the hub cannot be reached and the cache lacks",
        ),
        (datasets.exceptions.DatasetNotFoundError("'x' is a gated dataset on the Hub"), "is gated; accept its licence"),
        (ModuleNotFoundError("No module named 'sympy'"), "task boolq: a package is missing: No module named 'sympy'"),
    ):

        def fail(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(datasets, "load_dataset", fail)
        with pytest.raises(FreelunchError, match=message):
            zero_shot.load_tasks(["boolq"], {}, hub)


# --- local tasks, through the stages -----------------------------------------------------------------------------

FIELDS = {"title": "name", "description": "line", "topic": "field"}
LOCAL = ["article_description", "article_topic", "article_last_word"]


def plan(tmp_path: Path, **changes: Any) -> Plan:
    raw = config_of(tmp_path, FIELDS)
    asked = {"metric": "zero_shot", "tasks": LOCAL, "data": "documents", "limit": 10} | changes
    raw["suites"]["tiny"]["evaluate"] = [asked]
    return make_plan(parse_config(raw))


def run(tmp_path: Path, evaluation: EvaluationSpec, **execution: Any) -> Artifact:
    stages: dict[type, Any] = {
        ModelSpec: prepare_model, DataSpec: prepare_data, QuestionsSpec: questions, EvaluationSpec: evaluate,
    }  # fmt: skip
    settings = ExecutionConfig(device="cpu", stream_tokens=256, **execution)
    for spec in {each.manifest: each for each in walk(evaluation)}.values():
        stages[type(spec)](Stage(spec, tmp_path, settings, "code"))
    return Artifact(tmp_path / evaluation.folder, evaluation)


def test_local_tasks_become_rows_whichever_way_the_model_is_run(tmp_path: Path) -> None:
    (dense,) = plan(tmp_path).runs["tiny"]
    found = {}
    for way in ("streaming", "whole"):
        artifact = run(tmp_path, dense.evaluation, zero_shot=way)
        about = artifact.manifest["zero_shot"]
        assert about["model"] == way and about["lm_eval"] == "0.4.13"
        assert about["tasks"].keys() == set(LOCAL) and about["tasks"]["article_topic"]["version"] == 1.0
        assert [path.name for path in artifact.folder.iterdir() if path.is_dir()] == []
        found[way] = json.loads(artifact.file("metrics.json").read_text(encoding="utf-8"))
        requests = {name: task["requests"] for name, task in about["tasks"].items()}
        assert found.setdefault("requests", requests) == requests
    assert found["streaming"] == found["whole"]
    entries = {(entry["dataset"], entry["metric"]): entry for entry in found["whole"]}
    assert entries.keys() == {
        ("article_description", "acc"), ("article_description", "acc_norm"), ("article_description", "chance"),
        ("article_topic", "acc"), ("article_topic", "acc_norm"), ("article_topic", "chance"),
        ("article_last_word", "acc"), ("article_last_word", "chance"), (None, "acc_mean"),
    }  # fmt: skip
    assert entries["article_topic", "acc"] | {"value": 0, "stderr": 0} == {
        "metric": "acc", "dataset": "article_topic", "split": "test", "length": None, "position": None, "value": 0,
        "stderr": 0, "examples": 10, "shots": 0,
    }  # fmt: skip
    assert [entries[name, "chance"]["value"] for name in LOCAL] == [0.25, 0.25, 0.0]
    rows = {(row["dataset"], row["metric"]): row for row in rows_of("tiny", dense.evaluation, tmp_path)}
    assert rows.keys() == entries.keys()
    assert rows[None, "acc_mean"]["split"] is None and rows["article_topic", "acc"]["length"] is None


def test_a_task_that_cannot_be_loaded_stops_the_job_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (dense,) = plan(tmp_path, tasks=["article_topic", "arc_esay"]).runs["tiny"]
    monkeypatch.setattr("freelunch.stages.evaluation.open_network", None)
    with pytest.raises(FreelunchError, match="arc_esay: lm-eval has no such task"):
        run(tmp_path, dense.evaluation)
    assert not (tmp_path / dense.evaluation.manifest).exists()


def test_shots_of_a_task_that_has_no_place_for_them_are_refused(tmp_path: Path) -> None:
    (dense,) = plan(tmp_path, shots=2, tasks=["article_topic"]).runs["tiny"]
    with pytest.raises(FreelunchError, match="article_topic: is made for no solved examples, and shots is 2"):
        run(tmp_path, dense.evaluation)


def test_auto_holds_the_model_where_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (dense,) = plan(tmp_path, tasks=["article_last_word"], limit=2).runs["tiny"]
    assert run(tmp_path, dense.evaluation).manifest["zero_shot"]["model"] == "whole"
    monkeypatch.setattr("freelunch.evaluate.zero_shot.free_memory", lambda device: 2**20)
    assert run(tmp_path, dense.evaluation).manifest["zero_shot"]["model"] == "streaming"
