"""What a spec is: parameters, what they build on, and the key of both."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, ClassVar, Self

from ..section import Section

RESULTS = "results"
_LONGEST = 160  # of a label in a folder's name; the key tells cut ones apart
STAGES = (
    "data", "models", "questions", "calibration", "dense", "grams", "pruned", "shards", "reconstructed", "retrained",
    "repaired", "evaluation", "export", "images", "classifiers", "sparse_classifiers",
)  # fmt: skip
"""Folders of the stages below ``results``, upstream first."""


class Spec(Section):
    """Parameters of one stage run. Subclasses name the stage by the folder their results lie in."""

    stage: str
    uncounted: ClassVar[frozenset[str]] = frozenset(
        {"licence", "facts", "family", "questions", "pickled", "too_long", "only"}
    )
    """Fields that do not change what is computed and so are no part of the key: what a text or a model is called, in
    which files the same weights lie, whether a task is there at all. The key of questions has a copy of its own."""
    later: ClassVar[frozenset[str]] = frozenset({"train", "data"})
    """Fields that kinds of section got later: None is no part of the key, so that older results keep theirs."""

    @property
    def label(self) -> str:
        """What a person calls this spec."""
        raise NotImplementedError

    @property
    def resumed(self) -> bool:
        """Whether the stage keeps the files of an interrupted job, with a record by which they are judged."""
        return self.stage in ("shards", "reconstructed", "retrained")

    def upstream(self) -> list[Spec]:
        """The specs whose results this stage reads."""
        return []

    def changed(self, **fields: Any) -> Self:
        """The same with other values of some fields (a copy would keep the key)."""
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | fields)

    @cached_property
    def key(self) -> str:
        """Eight hex digits over the parameters and the keys of everything upstream."""
        return hashlib.sha256(json.dumps(_counted(self), sort_keys=True).encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        return f"{self.label[:_LONGEST]}-{self.key}"

    @property
    def folder(self) -> PurePosixPath:
        """Directory of the results, relative to the working directory."""
        return PurePosixPath(RESULTS, self.stage, self.name)

    @property
    def manifest(self) -> str:
        """Path of the file whose presence says that the stage is done."""
        return str(self.folder / "manifest.json")


def _counted(value: Any) -> Any:
    if isinstance(value, Spec | Section):
        fields = {field: getattr(value, field) for field in type(value).model_fields if field not in Spec.uncounted}
        return {field: _counted(its) for field, its in fields.items() if field not in Spec.later or its is not None}
    if isinstance(value, tuple | list):
        return [_counted(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _counted(item) for key, item in value.items()}
    return value
