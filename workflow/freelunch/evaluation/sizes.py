"""What zero-shot tasks hold in memory. Imports no torch: the plan predicts memory by it."""

from __future__ import annotations

from ..facts import Facts

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
