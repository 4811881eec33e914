"""Stage ``questions``: what local zero-shot tasks ask about the articles of a data set's test split."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

from freelunch.errors import FreelunchError, naming
from freelunch.inputs.documents import Document, Record, documents_of, read_documents
from freelunch.inputs.questions import QUESTION_SETS, Article
from freelunch.plan.config import Questions
from freelunch.plan.specs import QuestionsSpec
from freelunch.results.stage import Stage
from freelunch.stages.data import records_of


def make(stage: Stage) -> None:
    """Write ``<task>.jsonl`` for every local task whose fields the config names, one question a line.

    The records are read again, since documents are a text alone, and found by it: a test split holds every text once.

    Raises:
        FreelunchError: a record lacks a field, or there are too few articles to ask about.
    """
    spec = stage.spec
    assert isinstance(spec, QuestionsSpec)
    where = f"data.{spec.data.data}"
    split = spec.source.splits["test"]
    name, limit = (split, spec.source.max_documents) if isinstance(split, str) else (None, None)
    records = list(islice(records_of(stage, spec.source, name, f"{where}.splits.test"), limit))
    texts = [document.text for document in documents_of(records, spec.source, where)]
    by_text: dict[str, Record] = {}
    for text, record in zip(texts, records, strict=True):
        by_text.setdefault(text, record)
    documents = read_documents(stage.open(spec.data).file("test.jsonl"))
    articles = [_article(document, by_text[document.text], spec.fields, where) for document in documents]
    made = {}
    for task, kind in QUESTION_SETS.items():
        if any(getattr(spec.fields, field) is None for field in kind.fields):
            continue
        with naming(f"{where}.questions"):
            asked = kind.make(articles, spec.fields.seed)
            if not asked:
                raise FreelunchError(f"{task}: there is nothing to ask about the test split")
        with stage.writing(f"{task}.jsonl") as path:
            path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in asked), encoding="utf-8")
        answers = Counter(str(each["choices"][each["answer"]] if "choices" in each else each["word"]) for each in asked)
        made[task] = {"questions": len(asked), "most_common_answer": max(answers.values()) / len(asked)}
    stage.finish(questions=made, licence=spec.source.licence)


def _article(document: Document, record: Record, fields: Questions, where: str) -> Article:
    found = {}
    for field in ("title", "description", "topic"):
        name = getattr(fields, field)
        if name is None:
            continue
        if name not in record[1]:
            known = ", ".join(sorted(record[1]))
            raise FreelunchError(f"{where}.questions.{field}: a record has no field {name!r}; fields found: {known}")
        found[field] = str(record[1][name] or "").strip()
    if found.get("topic") in fields.no_topic:
        found["topic"] = ""
    return Article(document.id, document.text, **found)
