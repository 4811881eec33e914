"""Sizes of zero-shot tasks, and what they hold in memory. Imports no torch: the plan predicts both by it."""

from __future__ import annotations

from freelunch.plan.facts import Facts

LARGEST = 32 * 2**30
"""Bytes up to which ``execution.zero_shot: auto`` holds a whole model in the host's memory."""
STATES = 4 * 2**30
"""Bytes of hidden states that are held when streaming, at most (one batch in any case)."""
LOGITS = 2**26
"""Logits that are computed at a time when streaming, at most (those of one sequence in any case)."""


def whole_bytes(facts: Facts, width: int, stream_tokens: int) -> float:
    """Bytes of a whole model and of a batch: weights, logits as computed and in float32, activations.

    Args:
        width: bytes of a number that products are computed of.
    """
    tokens = max(stream_tokens, 1024)
    logits = tokens * facts.vocab_size * (width + 8)
    states = 4 * tokens * (facts.hidden_size + facts.intermediate_size) * width
    return facts.parameters * width + logits + states


EXAMPLES: dict[str, tuple[int, int]] = {
    "arc_challenge": (1172, 160), "arc_easy": (2376, 140), "article_description": (2000, 180),
    "article_last_word": (400, 110), "article_topic": (500, 160), "boolq": (3270, 150), "gsm8k": (1319, 1200),
    "hellaswag": (10042, 400), "humaneval": (164, 600), "openbookqa": (500, 80), "rte": (277, 80),
    "winogrande": (1267, 60),
}  # fmt: skip
"""Examples of a zero-shot task in the split that lm-eval uses, and about how many tokens one takes with all choices."""
UNKNOWN = (2000, 400)
WRITTEN = {"gsm8k": 256, "humaneval": 512}
"""Tokens that a model writes about as an answer; streamed, each takes a pass over all that is before it."""


def tokens_of(task: str, limit: int | None, streamed: bool) -> int:
    """About how many tokens of a task go through a model, of its first ``limit`` examples."""
    examples, each = EXAMPLES.get(task, UNKNOWN)
    return min(examples, limit or examples) * each * (WRITTEN.get(task, 1) if streamed else 1)
