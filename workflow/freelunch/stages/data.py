"""Prepare a text data set: one file of documents per split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from freelunch.errors import FreelunchError
from freelunch.inputs.documents import (
    FORMATS,
    Document,
    Record,
    deal,
    documents_of,
    numbered,
    read_records,
    write_documents,
)
from freelunch.inputs.sources import hub_error, wheel_member, wheel_path
from freelunch.plan.config import SPLITS, DataConfig, Hub, Split
from freelunch.plan.specs import DataSpec
from freelunch.results.stage import Stage


def make(stage: Stage) -> None:
    """Write ``<split>.jsonl`` for every split of the config, one ``{"id", "text"}`` a line.

    Fractions deal the source's documents out; names take the records of the source's own splits or files unchanged,
    empty ones included, since joining WikiText the usual way counts on them.

    Raises:
        FreelunchError: the source cannot be fetched or read, or lacks a field, a file or a split.
    """
    spec = stage.spec
    assert isinstance(spec, DataSpec)
    source, where = spec.source, f"data.{spec.data}"
    fractions = {split: share for split, share in source.splits.items() if isinstance(share, float)}
    splits: dict[Split, Iterable[Document]] = {}
    if fractions:
        documents = list(documents_of(records_of(stage, source, None, where), source, where))
        try:
            splits.update(deal(documents, fractions, source.max_documents))
        except FreelunchError as error:
            raise FreelunchError(f"{where}.{error}") from None
    else:
        names = {split: str(source.splits[split]) for split in SPLITS if split in source.splits}
        for split, name in names.items():
            twins = [other for other, its in names.items() if its == name and other != split]
            if twins:
                raise FreelunchError(f"{where}.splits: {split} and {twins[0]} are both {name!r}, and must not overlap")
            records = records_of(stage, source, name, f"{where}.splits.{split}")
            splits[split] = islice(numbered(documents_of(records, source, where)), source.max_documents)

    sizes = {}
    for split, members in splits.items():
        with stage.writing(f"{split}.jsonl") as part:
            sizes[split] = write_documents(members, part)
        if not sizes[split]["documents"]:
            raise FreelunchError(f"{where}.splits.{split}: {source.splits[split]!r} has no records")
    stage.finish(splits=sizes, licence=source.licence)


def records_of(stage: Stage, source: DataConfig, name: str | None, where: str) -> Iterator[Record]:
    """Records of the whole source, or of its split or files ``name``.

    Raises:
        FreelunchError: the source cannot be fetched or read, or has no such split or file; ``where`` is its key.
    """
    if source.hub is not None:
        return _hub(source.hub, name, source.max_documents, where)
    if source.wheel is not None:
        if name is not None:
            raise FreelunchError(f"{where}: {name!r}: a wheel member has no splits of its own; give fractions")
        return _member(stage, source)
    assert source.path is not None
    return _files(_matching(stage.root / Path(source.path).expanduser(), name, where))


def _member(stage: Stage, source: DataConfig) -> Iterator[Record]:
    assert source.wheel is not None
    wheel = source.wheel
    with wheel_member(wheel_path(stage.root, wheel), wheel.member, wheel.sha256) as stream:
        yield from read_records(stream, wheel.member)


def _files(paths: list[Path]) -> Iterator[Record]:
    for path in paths:
        with path.open("rb") as stream:
            yield from read_records(stream, str(path))


def _matching(path: Path, name: str | None, where: str) -> list[Path]:
    """Files of a local source: itself, all below it, or those that ``name`` (a pattern or a stem) stands for."""
    if path.is_file():
        if name is not None:
            raise FreelunchError(f"{where}: {path} is one file, without splits of its own; give fractions")
        return [path]
    if not path.is_dir():
        raise FreelunchError(f"{where}: {path} does not exist")
    for pattern in ["**/*"] if name is None else [name, f"{name}.*", f"{name}-*", f"{name}/**/*"]:
        found = sorted(file for file in path.glob(pattern) if file.is_file() and file.name.endswith(FORMATS))
        if found:
            return found
    there = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    shown = ", ".join(there[:10]) + (", …" if len(there) > 10 else "")
    wanted = f"no file {name!r} in {path}" if name else f"no file in {path} in one of the formats {', '.join(FORMATS)}"
    raise FreelunchError(f"{where}: {wanted}; files found: {shown or 'none'}")


def _hub(hub: Hub, name: str | None, limit: int | None, where: str) -> Iterator[Record]:
    """Records of a hub data set: of one split, of the files that a pattern names, or of all splits."""
    from datasets import load_dataset

    # with a limit only what is needed is read, instead of a shard of hundreds of megabytes
    options: dict[str, Any] = {"revision": hub.revision, "streaming": limit is not None and name is not None}
    if name is not None and ("/" in name or "." in name):
        # the repository's card counts all of its files, of which these are a part
        options |= {"data_files": {"chosen": name}, "split": "chosen", "verification_mode": "no_checks"}
    elif name is not None:
        options["split"] = name
    try:
        loaded = load_dataset(hub.id, hub.subset, **options)
        for part in loaded.values() if name is None else [loaded]:
            yield from (("", record) for record in part)
    except Exception as error:
        raise FreelunchError(f"{where}: {hub_error(error, hub)}") from None
