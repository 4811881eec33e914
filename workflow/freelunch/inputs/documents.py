"""Documents of a text data set: read from files, and dealt into splits that have none in common."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

from freelunch.errors import FreelunchError, first_line
from freelunch.plan.config import SPLITS, DataConfig, Split

FORMATS = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".txt", ".parquet")
Record = tuple[str, dict[str, Any]]
"""The key under which a file holds a record ("" if it has none), and the record."""


class Document(NamedTuple):
    """A text and what identifies it."""

    id: str
    text: str


def read_records(stream: IO[bytes], name: str) -> Iterator[Record]:
    """Records of a file in one of ``FORMATS``, told apart by its name.

    JSON is a list of records, a mapping from keys to records, or one record a line. Paragraphs of plain text (what lies
    between blank lines) are records with the one field ``text``.

    Raises:
        FreelunchError: another format, or a file that is not in the format of its name.
    """
    if not name.endswith(FORMATS):
        raise FreelunchError(f"{name}: is in none of the formats {', '.join(FORMATS)}")
    try:
        if name.endswith(".parquet"):
            yield from _parquet(stream)
        elif name.endswith(".txt"):
            text = stream.read().decode().replace("\r\n", "\n")
            yield from (("", {"text": part}) for part in text.split("\n\n") if part.strip())
        else:
            unpacked: Any = gzip.open(stream) if name.endswith(".gz") else stream  # noqa: SIM115 (has no file of its own)
            for key, record in _json(unpacked, name):
                if not isinstance(record, dict):
                    raise FreelunchError(f"{name}: holds a {type(record).__name__} where a record should be")
                yield key, record
    except (UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
        raise FreelunchError(f"{name}: cannot be read: {error}") from None


def _json(stream: IO[bytes], name: str) -> Iterator[tuple[str, Any]]:
    first = stream.readline()
    try:
        head = json.loads(first)
        by_line = isinstance(head, dict) and not (head and all(isinstance(value, dict) for value in head.values()))
    except (ValueError, RecursionError):
        by_line = False
    if not by_line:
        try:
            whole = json.loads(first + stream.read())
        except (ValueError, RecursionError) as error:
            raise FreelunchError(f"{name}: is not JSON: {error}") from None
        if isinstance(whole, dict):
            yield from whole.items()
        else:
            yield from (("", record) for record in (whole if isinstance(whole, list) else [whole]))
        return
    for number, line in enumerate(chain([first], stream), start=1):
        if not line.strip():
            continue
        try:
            yield "", json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FreelunchError(f"{name}: line {number} is not JSON: {error}") from None


def _parquet(stream: IO[bytes]) -> Iterator[Record]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        # a member of a wheel seeks by reading everything again, so it is read once
        source = stream if isinstance(stream, io.BufferedReader) else io.BytesIO(stream.read())
        for batch in ParquetFile(source).iter_batches(batch_size=1024):
            yield from (("", record) for record in batch.to_pylist())
    except ArrowException as error:
        raise OSError(first_line(error)) from None


def documents_of(records: Iterable[Record], source: DataConfig, where: str) -> Iterator[Document]:
    """The text of every record, identified by the field that the config names, else by the record's key.

    Raises:
        FreelunchError: a record lacks a field (names those it has), or its text is no text.
    """
    for number, (key, record) in enumerate(records):
        for field, option in ((source.text, "text"), (source.identifier, "identifier")):
            if field is not None and field not in record:
                found = ", ".join(sorted(record)) or "none"
                raise FreelunchError(f"{where}.{option}: record {number} has no field {field!r}; fields found: {found}")
        text = record[source.text]
        if not isinstance(text, str | None):
            raise FreelunchError(f"{where}.text: {source.text!r} of record {number} is a {type(text).__name__}")
        document = Document(str(record[source.identifier]) if source.identifier else key, text or "")
        try:
            "".join(document).encode()
        except UnicodeEncodeError as error:  # JSON can hold half of a surrogate pair
            raise FreelunchError(f"{where}.text: record {number} is no text: {error}") from None
        yield document


def numbered(documents: Iterable[Document]) -> Iterator[Document]:
    """Documents as they are, those without an identifier numbered by their place."""
    for number, document in enumerate(documents):
        yield document if document.id else Document(str(number), document.text)


def deal(
    documents: Iterable[Document], fractions: dict[Split, float], max_documents: int | None = None
) -> dict[Split, list[Document]]:
    """Deal documents into splits by the hash of their identifier (of their text, if they have none).

    Empty texts and exact copies of an earlier text are dropped first; documents of one identifier stay together. Which
    split a document gets depends on the set of documents, not on their order, and each split is a random sample in
    random order, so that its first ``max_documents``, the most kept of each, are one too.

    Args:
        documents: in any order.
        fractions: share of each split in the identifiers, above 0 and adding up to at most 1.
        max_documents: most documents kept per split.

    Raises:
        FreelunchError: a split gets no document.
    """
    ranked: dict[str, list[Document]] = {}
    seen: set[bytes] = set()
    # sorted, so that of several copies the same one stays whatever the order of the files
    for document in sorted(documents):
        digest = hashlib.sha256(document.text.strip().encode()).digest()
        if document.text.strip() and digest not in seen:
            seen.add(digest)
            kept = document if document.id else Document(digest.hex()[:16], document.text)
            ranked.setdefault(hashlib.sha256(kept.id.encode()).hexdigest(), []).append(kept)
    order = sorted(ranked)
    splits: dict[Split, list[Document]] = {}
    start, share = 0, 0.0
    for split in SPLITS:
        if split not in fractions:
            continue
        share += fractions[split]
        stop = round(share * len(order))
        members = [document for rank in order[start:stop] for document in ranked[rank]]
        if not members:
            raise FreelunchError(f"splits.{split}: {fractions[split]} of {len(order)} documents is none")
        splits[split] = members[:max_documents]
        start = stop
    return splits


def write_documents(documents: Iterable[Document], path: Path) -> dict[str, int]:
    """Write one JSON object ``{"id", "text"}`` a line; return how many documents and characters there are."""
    count = characters = 0
    with path.open("w", encoding="utf-8") as sink:
        for document in documents:
            sink.write(json.dumps(document._asdict(), ensure_ascii=False) + "\n")
            count += 1
            characters += len(document.text)
    return {"documents": count, "characters": characters}


def iterate_documents(path: Path) -> Iterator[Document]:
    """Read what :func:`write_documents` wrote, one document after the other."""
    with path.open(encoding="utf-8") as source:
        for line in source:
            yield Document(**json.loads(line))


def read_documents(path: Path) -> list[Document]:
    """Read all that :func:`write_documents` wrote."""
    return list(iterate_documents(path))
