"""Methods by name: ``wanda``, or ``ria(alpha=1)``, stands for an object of a small dataclass with its settings.

Nothing here imports torch when it is loaded, nor does a module of methods, so that a config can be checked without it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, fields
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import Any, Generic, TypeVar

from freelunch.errors import FreelunchError, suggest

_FORM = re.compile(r"^\s*([A-Za-z_]\w*)\s*(?:\(([^()]*)\))?\s*$")
_JOINED = re.compile(r"\+(?=\s*[A-Za-z_])")  # not the + of 1e+2
_names: dict[type, str] = {}
"""Of the classes of all kinds."""
M = TypeVar("M")


class Methods(Generic[M]):
    """The methods of one kind (what messages call it); classes enter by :meth:`register`.

    A ``folder``, of the full name ``package``, has a module per method, of its name, which is imported when the method
    is asked for: the hash of code counts only those that a spec uses.
    """

    def __init__(self, kind: str, folder: Path | None = None, package: str = "") -> None:
        self._kind, self._package = kind, package
        self._classes: dict[str, type[M]] = {}
        self._modules = {path.stem for path in folder.glob("*.py")} - {"__init__"} if folder else set()

    @property
    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._modules | self._classes.keys()))

    def register(self, name: str) -> Callable[[type[M]], type[M]]:
        """Decorates the class that ``name`` stands for."""

        def enter(cls: type[M]) -> type[M]:
            self._classes[name], _names[cls] = cls, name
            return cls

        return enter

    def parse(self, text: object) -> M:
        """The method that a text of the config stands for.

        Raises:
            FreelunchError: there is no such method or setting, or a value is not of its setting's type.
        """
        match = _FORM.match(text) if isinstance(text, str) else None
        if match is None:
            raise FreelunchError(f"{text!r} is no {self._kind}; write NAME or NAME(SETTING=VALUE, …)")
        name, settings = match[1], match[2] or ""
        if name not in self.names:
            raise FreelunchError(f"there is no {self._kind} {name!r}; {suggest(name, self.names)}")
        if name in self._modules:
            import_module(f"{self._package}.{name}")
        method = self._classes[name]
        try:
            return method(**_settings(name, method, settings))
        except FreelunchError as error:
            raise FreelunchError(f"{self._kind} {text!r}: {error}") from None

    def canonical(self, text: object) -> str:
        """The one way a method is written in specs and rows."""
        return describe(self.parse(text))

    def parse_joined(self, text: str) -> tuple[M, ...]:
        """The methods of a text such as ``dsnot + admm(rho=2)``, in order."""
        return tuple(self.parse(part) for part in _JOINED.split(text))


def describe(method: Any) -> str:
    """The text that stands for a method; settings at their defaults are left out."""
    changed = [field for field in fields(method) if getattr(method, field.name) != _default(field)]
    name = _names[type(method)]
    return f"{name}({', '.join(_shown(field, getattr(method, field.name)) for field in changed)})" if changed else name


def slug(text: str) -> str:
    """A text of :func:`describe` as part of a file name: ``ria(alpha=1)`` gives ``ria-alpha1``."""
    return re.sub(r"[^\w.]+", "-", text.replace("=", "").replace("%", "")).strip("-")


def _settings(name: str, method: type, text: str) -> dict[str, Any]:
    known = {field.name.rstrip("_"): field for field in fields(method)}
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    listed = next((field for field in known.values() if field.type == "tuple[float, ...]"), None)
    if listed is not None:
        return {listed.name: tuple(_number(listed.name, part) for part in parts)}
    values: dict[str, Any] = {}
    for part in parts:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise FreelunchError(f"{part!r} is not of the form SETTING=VALUE")
        if key in known and known[key].name in values:
            raise FreelunchError(f"{key} is set twice")
        if key not in known:
            allowed = suggest(key, known) if known else f"{name} has no settings"
            raise FreelunchError(f"there is no setting {key!r}; {allowed}")
        number = _number(key, value)
        if known[key].type == "int" and number != int(number):
            raise FreelunchError(f"{key} is a whole number, not {value}")
        values[known[key].name] = int(number) if known[key].type == "int" else number
    return values


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
