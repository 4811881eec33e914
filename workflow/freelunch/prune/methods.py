"""Methods by name: ``wanda``, or ``ria(alpha=1)``, stands for an object of a small dataclass.

A package of methods (criteria, refinements, allocations, parametrizations) is a folder with one module per method; the
module ends with ``method = TheClass``. The fields of the class are its settings. None of these modules imports torch
when it is loaded, so that the config can be checked without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import Any

from freelunch.errors import FreelunchError, suggest

_FORM = re.compile(r"^\s*([A-Za-z_]\w*)\s*(?:\(([^()]*)\))?\s*$")


class Methods:
    """The methods of one package.

    Args:
        package: full name of the package.
        folder: where its modules lie.
        kind: what a method of it is called in messages.
        base: the module that is no method.
    """

    def __init__(self, package: str, folder: Path, kind: str, base: str) -> None:
        self._package, self.kind = package, kind
        self.names = tuple(sorted({path.stem for path in folder.glob("*.py")} - {"__init__", base}))

    def parse(self, text: object) -> Any:
        """The method that a text of the config stands for.

        Raises:
            FreelunchError: there is no such method or setting, or a value is not of its setting's type.
        """
        match = _FORM.match(text) if isinstance(text, str) else None
        if match is None:
            raise FreelunchError(f"{text!r} is no {self.kind}; write NAME or NAME(SETTING=VALUE, …)")
        name, settings = match[1], match[2] or ""
        if name not in self.names:
            raise FreelunchError(f"there is no {self.kind} {name!r}; {suggest(name, self.names)}")
        # looked up by module, so that editing one reruns only its own results
        method = import_module(f"{self._package}.{name}").method
        try:
            return method(**_settings(name, method, settings))
        except FreelunchError as error:
            raise FreelunchError(f"{self.kind} {text!r}: {error}") from None


def describe(method: Any) -> str:
    """The text that stands for a method; settings at their defaults are left out."""
    name = type(method).__module__.rsplit(".", 1)[-1]
    given = [field for field in fields(method) if getattr(method, field.name) != _default(field)]
    return f"{name}({', '.join(_shown(field, getattr(method, field.name)) for field in given)})" if given else name


def slug(text: str) -> str:
    """A text of :func:`describe` as part of a file name: ``ria(alpha=1)`` gives ``ria-alpha1``."""
    return re.sub(r"[^\w.]+", "-", text.replace("=", "").replace("%", "")).strip("-")


def _settings(name: str, method: type, text: str) -> dict[str, Any]:
    known = {field.name.rstrip("_"): field for field in fields(method)}
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    listed = next((field for field in known.values() if field.type == "tuple[float, ...]"), None)
    if listed is not None:
        return {listed.name: tuple(_number(listed.name, part) for part in parts)}
    found: dict[str, Any] = {}
    for part in parts:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise FreelunchError(f"{part!r} is not of the form SETTING=VALUE")
        if key in known and known[key].name in found:
            raise FreelunchError(f"{key} is set twice")
        if key not in known:
            allowed = suggest(key, known) if known else f"{name} has no settings"
            raise FreelunchError(f"there is no setting {key!r}; {allowed}")
        number = _number(key, value)
        if known[key].type == "int" and number != int(number):
            raise FreelunchError(f"{key} is a whole number, not {value}")
        found[known[key].name] = int(number) if known[key].type == "int" else number
    return found


def _number(key: str, text: str) -> float:
    percent = text.endswith("%")
    try:
        number = float(text.removesuffix("%"))
        if not isfinite(number):
            raise ValueError
    except ValueError:
        raise FreelunchError(f"{key}: {text!r} is not a number") from None
    return number / 100 if percent else number


def _default(field: Field[Any]) -> Any:
    return field.default if field.default is not MISSING else ()


def _shown(field: Field[Any], value: Any) -> str:
    if isinstance(value, Iterable):
        return ", ".join(f"{item:.12g}" for item in value)
    return f"{field.name.rstrip('_')}={value:.12g}"


def positive(**settings: float) -> None:
    """Raise unless every setting is above zero; for ``__post_init__``."""
    for name, value in settings.items():
        if not value > 0:
            raise FreelunchError(f"{name.rstrip('_')} must be above 0, not {value:g}")
