"""The one exception users see: a sentence that names what is wrong and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class FreelunchError(ValueError):
    """A failure with a cause the user can act on. Jobs print its message as one line, without a traceback."""


def suggest(word: str, allowed: Iterable[str]) -> str:
    """Return ``did you mean 'x'? allowed: a, b, x`` for a word that is none of ``allowed``."""
    names = sorted(allowed)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}allowed: {', '.join(names)}"


def first_line(error: BaseException) -> str:
    """What an exception of a library says, or what it is called if it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # a line that ends like this says what the next is about
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:300]


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Put the name of a matrix, say, in front of the message of a failure."""
    try:
        yield
    except FreelunchError as error:
        raise FreelunchError(f"{what}: {error}") from None
