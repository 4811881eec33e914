"""Questions about the articles of a data set, for zero-shot tasks that need no network: one set for each local task.

A task is a file of ``workflow/tasks``, in lm-eval's format, and its questions are the JSON lines of the same name.
All of a set is drawn from the articles it is given (those of a test split), wrong answers included.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freelunch.errors import FreelunchError

FOLDER = Path(__file__).parents[2] / "tasks"
CHOICES = 4
WORDS = 100
"""Words of an article that stand before its last one, at most."""
BEGINNING = 30
"""Words of an article that a question with choices shows, at most."""

Question = dict[str, Any]


@dataclass(frozen=True)
class Article:
    """A text with what its record says about it; empty where it does not."""

    id: str
    text: str
    title: str = ""
    description: str = ""
    topic: str = ""


@dataclass(frozen=True)
class QuestionSet:
    """How the questions of one local task are made, and the fields of a record that it takes."""

    make: Callable[[Sequence[Article], int], list[Question]]
    fields: tuple[str, ...] = ()


def descriptions(articles: Sequence[Article], seed: int) -> list[Question]:
    """Which of four lines describes an article? The wrong ones are those of other articles.

    Raises:
        FreelunchError: there are not four different ones.
    """
    known = [article for article in articles if article.title and article.description]
    lines = sorted({article.description.casefold(): article.description for article in known}.values())
    _enough("descriptions", lines)
    found = []
    for article in known:
        draw = random.Random(f"description {seed} {article.id}")
        # one more than needed: the article's own may be among them
        drawn = draw.sample(lines, CHOICES)
        others = [line for line in drawn if line.casefold() != article.description.casefold()][: CHOICES - 1]
        found.append(_question(article, article.description, others, draw))
    return found


def topics(articles: Sequence[Article], seed: int) -> list[Question]:
    """Which of four topics is an article about? Every topic is the answer equally often, in turn.

    Raises:
        FreelunchError: there are not four different ones.
    """
    by_topic: dict[str, list[Article]] = {}
    for article in articles:
        if article.topic:
            by_topic.setdefault(article.topic, []).append(article)
    names = sorted(by_topic)
    _enough("topics", names)
    found = []
    for turn in zip(*(by_topic[name] for name in names), strict=False):
        for article in turn:
            draw = random.Random(f"topic {seed} {article.id}")
            others = draw.sample([name for name in names if name != article.topic], CHOICES - 1)
            found.append(_question(article, article.topic, others, draw))
    return found


def last_words(articles: Sequence[Article], seed: int) -> list[Question]:
    """What is the last word of an article, where that is one that occurs in it before? There is nothing to draw."""
    found = []
    for article in articles:
        match = re.fullmatch(r"(.*\S)\s+([^\W\d_]{3,})[.!?]?", article.text.strip(), flags=re.DOTALL)
        before = " ".join(match[1].split()[-WORDS:]) if match else ""
        if match and match[2] in re.findall(r"\w+", before):
            found.append({"id": article.id, "context": before, "word": match[2]})
    return found


def _question(article: Article, answer: str, others: list[str], draw: random.Random) -> Question:
    choices = [answer, *others]
    draw.shuffle(choices)
    about = {"id": article.id, "title": article.title, "text": beginning(article.text)}
    return about | {"choices": choices, "answer": choices.index(answer)}


def beginning(text: str) -> str:
    """The first sentence of a text, and no more than ``BEGINNING`` words of it."""
    sentence = re.match(r".+?[^\W_]{2}[)\]\"']*[.!?](?=\s|$)", text.strip(), flags=re.DOTALL)
    return " ".join((sentence[0] if sentence else text).split()[:BEGINNING])


def _enough(what: str, different: Sequence[str]) -> None:
    if len(different) < CHOICES:
        raise FreelunchError(f"the {what} of the test split: {len(different)} are different, {CHOICES} are needed")


QUESTION_SETS = {
    "article_description": QuestionSet(descriptions, ("title", "description")),
    "article_topic": QuestionSet(topics, ("topic",)),
    "article_last_word": QuestionSet(last_words),
}
"""By the name of the local task that asks them."""
