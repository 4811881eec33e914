"""Zero-shot tasks: as far as the number and the length of their examples are known before they are loaded."""

from __future__ import annotations

from ..plan.config import Config, ZeroShotTask
from ..plan.facts import Facts
from .basis import batch_bytes, forward_operations

EXAMPLES: dict[str, tuple[int, int]] = {
    "arc_challenge": (1172, 160),
    "arc_easy": (2376, 140),
    "article_description": (2000, 180),
    "article_last_word": (400, 110),
    "article_topic": (500, 160),
    "boolq": (3270, 150),
    "gsm8k": (1319, 1200),
    "hellaswag": (10042, 400),
    "humaneval": (164, 600),
    "openbookqa": (500, 80),
    "rte": (277, 80),
    "winogrande": (1267, 60),
}
"""Examples of a task, and about how many tokens one takes with all its choices; of those that a study is likely to ask.

Sizes are those of the splits that lm-eval uses; tokens are rounded, for a vocabulary of 50,000.
"""
UNKNOWN = (2000, 400)
WRITTEN = {"gsm8k": 256, "humaneval": 512}
"""Tokens that a model writes about as an answer; streamed, each takes a pass over all that is before it."""
STATES = 4 * 2**30
"""Bytes of hidden states that are held when streaming, at most."""
LARGEST = 32 * 2**30
"""Bytes up to which ``execution.zero_shot: auto`` holds a whole model in the host's memory."""


def tokens(config: Config, task: ZeroShotTask) -> float:
    """Tokens that go through the model."""
    total = 0.0
    for name in task.tasks:
        examples, each = EXAMPLES.get(name, UNKNOWN)
        passes = WRITTEN.get(name, 1) if config.execution.zero_shot == "streaming" else 1
        total += min(examples, task.limit or examples) * each * passes
    return total


def operations(config: Config, facts: Facts, task: ZeroShotTask) -> float:
    """Of the blocks and of the head, which reads a few tokens of each sequence when streamed, else all of them."""
    count = tokens(config, task)
    head = 2 * count * facts.vocab_size * facts.hidden_size if config.execution.zero_shot != "streaming" else 0
    return facts.num_hidden_layers * forward_operations(facts, int(count), 100) + head


def whole_bytes(facts: Facts, width: int, stream_tokens: int) -> float:
    """Memory of a whole model and of a batch: weights, logits as computed and in float32, activations."""
    batch = max(stream_tokens, 1024)
    logits = batch * facts.vocab_size * (width + 8)
    states = 4 * batch * (facts.hidden_size + facts.intermediate_size) * width
    return facts.parameters * width + logits + states


def memory(config: Config, facts: Facts, width: int, task: ZeroShotTask) -> float:
    """Host memory beside the process; the whole model takes some only where blocks are run on the CPU."""
    whole = whole_bytes(facts, width, config.execution.stream_tokens)
    chosen, on_host = config.execution.zero_shot, config.execution.device != "cuda"
    if chosen == "whole" or (chosen == "auto" and on_host and whole <= LARGEST):
        return whole if on_host else facts.parameters * width / facts.num_hidden_layers
    states = min(STATES, tokens(config, task) * facts.hidden_size * width)
    embedding = facts.vocab_size * facts.hidden_size * width
    return states + embedding + batch_bytes(config, facts, 1024, width) + 2**26 * (width + 8)
