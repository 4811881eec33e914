"""The tokens of a text that is made of documents, without tokenising more of it than is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

MARGIN = 256
"""Tokens behind those wanted before what comes after them cannot matter: the end of a text changes how the last word
or the last merges before it are tokenised, and tokenizers that weigh whole sequences forget within some tokens."""
FIRST = 64
"""Documents that are tokenised first; then twice as many, until there are tokens enough."""


def first_tokens(
    texts: Iterable[str], separator: str, encode: Callable[[str], list[int]], wanted: int | None
) -> list[int]:
    """At least the first ``wanted`` tokens of the joined texts (fewer if there are fewer); all of them if None.

    Joining tokenised documents would give other tokens at every seam, so the documents are joined first. Of them only
    as many are read as give ``wanted`` tokens and :data:`MARGIN` more: the first ``wanted`` are those of the whole.
    """
    source = iter(texts)
    taken = list(islice(source, None if wanted is None else FIRST))
    while True:
        tokens = encode(separator.join(taken))
        more = [] if wanted is None or len(tokens) >= wanted + MARGIN else list(islice(source, len(taken)))
        if not more:
            return tokens
        taken += more
