"""What all sections of the config and all specs are made of, and the line that a user reads of a value that cannot be.

Imports neither torch nor transformers, as everything in this package: every job of the workflow reads the config again.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, Tag, ValidationError

from freelunch.errors import FreelunchError, suggest

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
"""Becomes part of paths and commands."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Length = Annotated[int, Field(gt=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]

UNCOUNTED = "uncounted"
"""Marks a field that changes nothing that is computed: it is no part of a key."""
OPTIONAL = "counted unless it is None"
"""Marks a field that was added when there were results already: None is no part of a key, so that they keep theirs."""


class Section(BaseModel):
    """A part of the config: frozen, unknown keys refused. Docstrings below fields are their descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


Kind = TypeVar("Kind", bound=BaseModel)
_QUOTES = "'\""
_SHORTENED = reprlib.Repr()
"""Shows a value, which may be as large as the file."""
_SHORTENED.maxlevel, _SHORTENED.maxstring, _SHORTENED.maxother, _SHORTENED.maxlong = 3, 100, 100, 100


def validate(kind: type[Kind], raw: Any, path: str = "") -> Kind:
    """``kind.model_validate`` with readable errors; ``path`` is where ``raw`` stands in the config.

    Raises:
        FreelunchError: one line per problem, each with the key, the value and what is allowed.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(kind, dict(problem), path) for problem in error.errors()]
        raise FreelunchError("\n".join(lines)) from None


def _explain(kind: type[BaseModel], problem: dict[str, Any], path: str) -> str:
    key, siblings = _locate(kind, problem["loc"], path)
    value = _SHORTENED.repr(problem["input"])
    if problem["type"] in ("extra_forbidden", "none_required"):
        return f"{key}: unknown key; {suggest(key.rpartition('.')[2], siblings)}"
    if problem["type"] == "missing":
        return f"{key}: this key is missing"
    if problem["type"] in ("literal_error", "union_tag_invalid"):
        tagged = problem["type"] == "union_tag_invalid"
        if tagged:
            key, value = f"{key}.{problem['ctx']['discriminator'].strip('_()')}", _SHORTENED.repr(problem["ctx"]["tag"])
        expected = problem["ctx"]["expected_tags" if tagged else "expected"].replace(" or ", ", ").split(",")
        allowed = [each.strip(" '") for each in expected]
        return f"{key}: {value} is not possible; {suggest(value.strip(_QUOTES), allowed)}"
    message = problem["msg"].removeprefix("Value error, ")
    shown = f" (found {value})" if len(value) < 80 and value not in message else ""
    return f"{key}: {message}{shown}" if key else f"{message}{shown}"


def _locate(kind: type[BaseModel], location: tuple[int | str, ...], path: str) -> tuple[str, list[str]]:
    """The path of a problem as a user writes it, and the keys that are allowed there."""
    steps, siblings = [path] if path else [], list[str]()
    current: Any = kind
    for step in location:
        arms = _arms(current)
        section = next((arm for arm in arms.values() if isinstance(arm, type) and issubclass(arm, BaseModel)), None)
        mapping = next((arm for arm in arms.values() if get_origin(arm) is dict), None)
        if isinstance(step, int):
            steps[-1:] = [f"{steps[-1] if steps else ''}[{step}]"]
            current = next((get_args(arm)[0] for arm in arms.values() if get_args(arm)), None)
        elif len(arms) > 1 and step in arms:
            current = arms[step]
        elif step == "[key]" or (len(arms) > 1 and section is None and mapping is None):
            current = None  # pydantic names the arm of a union that it tried
        else:
            steps.append(step)
            if section is not None:
                siblings = [name for name, field in section.model_fields.items() if field.annotation is not NoneType]
            field = section.model_fields.get(step) if section is not None else None
            current = field.annotation if field is not None else get_args(mapping)[-1] if mapping else None
    return ".".join(steps), siblings


def _arms(annotation: Any) -> Mapping[str, Any]:
    """The types that a value may have, by the tag of a tagged union or the name of the type; without None."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) not in (Union, UnionType):
        return {"": annotation}
    arms: dict[str, Any] = {}
    for arm in get_args(annotation):
        tag = next((str(each.tag) for each in get_args(arm)[1:] if isinstance(each, Tag)), None)
        bare = get_args(arm)[0] if get_origin(arm) is Annotated else arm
        if bare is not NoneType:
            arms[tag or str(getattr(bare, "__name__", bare))] = bare
    return arms
