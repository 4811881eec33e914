"""What a spec is: parameters, what they build on, and the key of both."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, ClassVar, Self

from ..config import Section

RESULTS = "results"
_LONGEST = 160  # of a label in a folder's name; the key tells cut ones apart
STAGES = (
    "models", "data", "calibration", "dense", "grams", "pruned", "shards", "reconstructed", "retrained", "repaired",
    "evaluation", "export",
)  # fmt: skip
"""Folders of the stages below ``results``, upstream first."""


class Spec(Section):
    """Parameters of one stage run. Subclasses name the stage by the folder their results lie in."""

    stage: str
    uncounted: ClassVar[frozenset[str]] = frozenset({"licence", "facts", "pickled", "too_long"})
    """Fields that do not change what is computed and so are no part of the key: what a text or a model is called, in
    which files the same weights lie, and whether a task is there at all."""

    @property
    def label(self) -> str:
        """What a person calls this spec."""
        raise NotImplementedError

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
        skip = Spec.uncounted
        return {field: _counted(getattr(value, field)) for field in type(value).model_fields if field not in skip}
    if isinstance(value, tuple | list):
        return [_counted(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _counted(item) for key, item in value.items()}
    return value
