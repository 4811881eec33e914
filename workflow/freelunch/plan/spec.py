"""What a stage spec is: the parameters of a stage run, and the key of its result.

A stage is a pure function of its spec, and its directory is named after the spec's key. A spec holds its own parameters
and the specs that it builds on, so its key covers everything that shapes its output, and the copy of it in a manifest
is enough to run the stage again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import PurePosixPath
from typing import Any, ClassVar, Self

from freelunch.plan.config import ExecutionConfig, Source
from freelunch.plan.section import OPTIONAL, UNCOUNTED, Section

RESULTS = "results"
ONE_MATRIX = "one matrix and its statistics, which no setting makes smaller, need a larger GPU or execution.device: cpu"
"""What to do where nothing can be lowered."""
_LONGEST = 160  # of a label in a folder's name; the key tells cut ones apart

STAGES: dict[str, type[Spec]] = {}
"""The stages, upstream first: kinds of specs by name. Subclasses of ``Spec`` enter.

A stage has one name: that of its rule, of the folder of its results, of its module in ``stages``.
"""


class Spec(Section):
    """Parameters of one stage run, and what its job needs besides memory, which ``costs`` has."""

    stage: str
    """Name of the stage."""
    work: ClassVar[str]
    """What its job does, to be followed by the spec's name."""
    minutes: ClassVar[int]
    """That a cluster gives a job, unless its spec asks for more: see :attr:`runtime`."""
    computes: ClassVar[bool] = False
    """Whether the job computes on a GPU where there is one, and with several threads; some specs need neither."""

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        stage = cls.model_fields["stage"].default
        if isinstance(stage, str):
            STAGES[stage] = cls

    @property
    def label(self) -> str:
        """What a person calls this spec."""
        raise NotImplementedError

    @property
    def entry(self) -> tuple[str, str, Section] | None:
        """Of a stage that makes what the config names: section, name and entry."""
        return None

    @property
    def origin(self) -> Source | None:
        """Of a stage that reads files that are no results: where they come from."""
        return self.entry[2] if self.entry is not None and isinstance(self.entry[2], Source) else None

    @property
    def modules(self) -> list[str]:
        """Modules of the package that hold the methods it uses."""
        return []

    @property
    def runtime(self) -> int:
        """Minutes that a cluster gives the job."""
        return self.minutes

    @property
    def gpu(self) -> bool:
        """Whether the job gains from a GPU."""
        return self.computes

    @property
    def threaded(self) -> bool:
        """Whether the job gains from several threads."""
        return self.computes

    def small(self, operations: float) -> bool:
        """Whether, without a GPU, jobs of so many operations gain more side by side than from threads of their own."""
        return False

    @property
    def siblings(self) -> int:
        """Jobs that share a machine's cores because one was split into them."""
        return 1

    def remedy(self, execution: ExecutionConfig) -> str:
        """Which settings make the job take less memory of a GPU, with what they are now."""
        return ONE_MATRIX

    def split(self, shards: int) -> Sequence[Spec]:
        """The jobs that its work is split into where ``execution.shards`` are asked for; none if it is one job."""
        return []

    @property
    def resumed(self) -> bool:
        """Whether the stage keeps the files of an interrupted job, with a record by which they are judged."""
        return False

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


class MeasuredSpec(Spec):
    """A stage that measures a network: what a run of a suite asks for."""

    rows: ClassVar[str]
    """``module:function`` of the package: the rows of a suite that its numbers become, from suite, spec and root."""

    @property
    def model(self) -> str:
        """Name of the dense network underneath, as rows have it."""
        raise NotImplementedError

    @property
    def read(self) -> list[Spec]:
        """Everything whose numbers stand in the rows of the run."""
        raise NotImplementedError


def parse_spec(raw: dict[str, Any]) -> Spec:
    """A spec from its dump, such as the ``spec`` of a manifest."""
    return STAGES[raw["stage"]].model_validate(raw)


def _counted(value: Any) -> Any:
    """What a key is the hash of."""
    if isinstance(value, Section):
        fields = ((name, getattr(value, name), optional) for name, optional in _counted_fields(type(value)))
        return {name: _counted(each) for name, each, optional in fields if not (optional and each is None)}
    if isinstance(value, tuple | list):
        return [_counted(each) for each in value]
    if isinstance(value, dict):
        return {str(key): _counted(each) for key, each in value.items()}
    return value


@cache
def _counted_fields(kind: type[Section]) -> list[tuple[str, bool]]:
    """Fields that are part of a key, each with whether None is not."""
    fields = kind.model_fields.items()
    return [(name, OPTIONAL in field.metadata) for name, field in fields if UNCOUNTED not in field.metadata]
