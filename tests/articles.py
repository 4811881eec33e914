"""Articles to ask questions about, and a config that has them as its documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from freelunch.inputs.questions import Article
from freelunch.plan.yaml_files import read_yaml

ROOT = Path(__file__).parents[1]
TOPICS = ("Rivers", "Birds", "Bridges", "Letters", "Markets")


def article(number: int, topic: str = "") -> Article:
    text = f"Thing {number} is a thing of its own. It is beside thing {number + 1}, which is the other thing."
    return Article(str(number), text, f"Thing {number}", f"Line {number}", topic)


def articles(count: int = 40) -> list[Article]:
    return [article(number, TOPICS[min(number % 7, 4)]) for number in range(count)]


def records(count: int) -> list[dict[str, str]]:
    return [
        {"name": each.title, "text": each.text, "line": each.description, "field": each.topic}
        for each in articles(count)
    ]  # fmt: skip


def config_of(tmp_path: Path, fields: dict[str, Any], count: int = 60) -> Any:
    raw = read_yaml(ROOT / "tests/tiny.yaml")
    lines = "".join(json.dumps(record) + "\n" for record in records(count))
    (tmp_path / "articles.jsonl").write_text(lines, encoding="utf-8")
    raw["data"]["documents"] |= {
        "path": str(tmp_path / "articles.jsonl"), "identifier": "name", "questions": fields,
        "splits": {"calibration": 0.25, "validation": 0.25, "test": 0.5},
    }  # fmt: skip
    asked = {"metric": "zero_shot", "tasks": ["article_last_word"], "data": "documents"}
    raw["suites"]["tiny"] |= {"runs": [], "evaluate": [asked]}
    return raw
