"""What is generated from the code, by ``python -m freelunch.reference api|config|schema`` (``make reference``).

``api`` is ``docs/api.md``, from the docstrings of the library. ``config`` is ``docs/configuration.md``, its prose and
then tables of all keys, and ``schema`` the JSON schema by which editors complete and check a ``config.yaml``: both are
made from the classes of the config.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from freelunch.plan.config import Axes, catalogue, config_type
from freelunch.plan.facts import Facts
from freelunch.plan.plan import RUN_KINDS, VIEWS

CONFIGURATION = Path(__file__).parents[2] / "docs" / "configuration.md"
MARK = "<!-- All below is written by `make reference`. -->\n"
_SECTIONS = {"Args:": "Arguments", "Attributes:": "Attributes", "Raises:": "Fails with"}


# --- the config ------------------------------------------------------------------------------------------------------


def schema() -> str:
    """JSON schema of a ``config.yaml``, in which every axis is a value or a list of values."""
    whole = config_type().model_json_schema()
    sections = whole["$defs"]
    kinds: list[type[BaseModel]] = [Axes, *(kind.axes for kind in RUN_KINDS.values())]
    for kind in kinds:
        axes = kind.model_json_schema()
        del axes["required"]  # one may be in `defaults`, another in `runs`
        axes["properties"] = {name: _value_or_list(each) for name, each in axes["properties"].items()}
        sections[kind.__name__] = axes
    any_kind = [{"$ref": f"#/$defs/{kind.__name__}"} for kind in kinds]
    whole["properties"]["defaults"] |= any_kind[0]
    suite = sections["SuiteConfig"]["properties"]
    suite["defaults"]["anyOf"] = any_kind
    suite["runs"]["items"] = {"anyOf": any_kind}
    for key, views in VIEWS.items():
        suite[key]["items"] = {"enum": [*views]}
    for section in sections.values():
        if "only" in section.get("properties", ()):
            section["properties"]["only"] = any_kind[0] | {"description": section["properties"]["only"]["description"]}
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **_tidied(whole)}
    return json.dumps(whole, indent=1) + "\n"


def _value_or_list(axis: dict[str, Any]) -> dict[str, Any]:
    if axis.get("type") == "array":
        return axis
    about = {key: axis.pop(key) for key in ("description", "default") if key in axis}
    return about | {"anyOf": [axis, {"type": "array", "items": axis, "minItems": 1}]}


def _tidied(node: Any) -> Any:
    """Without titles, which repeat the keys; what is no name is no key either."""
    if isinstance(node, list):
        return [_tidied(each) for each in node]
    if not isinstance(node, dict):
        return node
    tidy = {key: _tidied(each) for key, each in node.items() if key != "title" or not isinstance(each, str)}
    if isinstance(tidy.get("description"), str):
        tidy["description"] = " ".join(tidy["description"].split())
    if tidy.get("additionalProperties") is True:
        del tidy["additionalProperties"]
    return tidy | {"additionalProperties": False} if "patternProperties" in tidy else tidy


def configuration() -> str:
    """The page of the config: its prose as it is, then tables of all keys."""
    prose, _, _ = CONFIGURATION.read_text(encoding="utf-8").partition(MARK)
    return prose + MARK + "\n" + "\n".join(_tables())


def sections(kind: type[BaseModel] | None = None, path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Sections below a section, that of the whole config by default, with their paths."""
    for name, field in (kind or config_type()).model_fields.items():
        for suffix, section in _sections_in(field.annotation):
            below = f"{path}.{name}".lstrip(".") + suffix
            yield below, section
            yield from sections(section, below)


def _sections_in(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "", annotation
    suffix = {dict: ".NAME", tuple: "[]", list: "[]"}.get(get_origin(annotation) or annotation, "")
    for argument in get_args(annotation):
        yield from ((suffix + rest, section) for rest, section in _sections_in(argument))


def _tables() -> Iterator[str]:
    titles: dict[type[BaseModel], str] = {config_type(): "## All keys\n"}
    for path, section in sections():
        metric = section.model_fields.get("metric")
        titles.setdefault(section, f"### `{path}`{f', {get_args(metric.annotation)[0]}' if metric else ''}\n")
    titles[Axes] = "### Axes\n"
    titles |= {kind.axes: f"### Axes with `{axis}`\n" for axis, kind in RUN_KINDS.items()}
    for section, title in titles.items():
        yield title
        yield from _table(section)
    yield "## Known models and data\n\nThey need no entry in a config; `workflow/references` has theirs.\n"
    yield "| section | name | source | parameters | licence |\n|---|---|---|---:|---|"
    for name in config_type().model_fields:
        for entry, raw in catalogue(name).items():
            source = raw["hub"]["id"] if "hub" in raw else raw["path"]
            parameters = Facts.model_validate(raw["shape"]).parameters / 1e9 if "shape" in raw else None
            size = "" if parameters is None else f"{parameters:.1f} B" if parameters >= 1 else f"{parameters:.2f} B"
            yield f"| `{name}` | `{entry}` | {source} | {size} | {raw['licence']} |"
    yield ""


def _table(section: type[BaseModel]) -> Iterator[str]:
    yield _markdown(section).split("\n\n")[0] + "\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    about = section.model_json_schema()
    for name, key in about["properties"].items():
        if key.get("type") == "null":
            continue  # only there for the keys of results
        everything = key.get("default") == key.get("items", {}).get("enum", 0)
        default = "all" if everything else _value(key.get("default"))
        default = "required" if name in about.get("required", ()) else default
        yield f"| `{name}` | {_type(key)} | {default} | {' '.join(key['description'].split())} |"
    yield ""


def _value(value: Any) -> str:
    """A default."""
    if isinstance(value, int | float):
        return json.dumps(value)
    texts = [value] if isinstance(value, str) and value.strip() else value if isinstance(value, list) else []
    return ", ".join(f"`{each}`" for each in texts) or ("two newlines" if value == "\n\n" else "none")


def _type(key: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if key.get("$ref") == "#/$defs/JsonValue" or not key:
        return "anything"
    if "$ref" in key or "oneOf" in key:
        return "section"
    if "enum" in key or "const" in key:
        return ", ".join(f"`{each}`" for each in key.get("enum", [key.get("const")]))
    if "anyOf" in key:
        return " or ".join(dict.fromkeys(_type(each) for each in key["anyOf"] if each.get("type") != "null"))
    kind = key.get("type")
    if kind == "array":
        return f"list of {_type(key['items'])}"
    if kind == "object":
        entries = [*key.get("patternProperties", {}).values(), key.get("additionalProperties")]
        names = "name" if "patternProperties" in key else _type(key.get("propertyNames", {"type": "string"}))
        entry = _type(entries[0]) if isinstance(entries[0], dict) else "anything"
        return "mapping" if entry.endswith("anything") else f"{names} → {entry}"
    if kind == "string":
        digits = re.fullmatch(r"\^\[0-9a-f\]\{(\d+)\}\$", key.get("pattern", ""))
        return f"{digits[1]} hex digits" if digits else "name" if key.get("maxLength") == 100 else "text"
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<"}
    bounds = " and ".join(f"{sign} {key[bound]}" for bound, sign in signs.items() if bound in key)
    return f"{kind} {bounds}".strip()


# --- the library -----------------------------------------------------------------------------------------------------


def api() -> str:
    """The page of the functions for Python; imports torch."""
    from freelunch import library

    parts = [
        "# Reference: freelunch from Python",
        "Written by `make reference` from the docstrings of `workflow/freelunch/library.py`. Import from `freelunch`.",
        _markdown(library),
    ]
    for function in (library.prune, library.reconstruct, library.perplexity, library.save):
        parts += [f"## {function.__name__}", _signature(function), _markdown(function)]
    parts += ["## Pruned", _markdown(library.Pruned)]
    members = vars(library.Pruned).items()
    parts += [f"`{name}`: {_markdown(member)}" for name, member in members if isinstance(member, property)]
    return "\n\n".join(parts) + "\n"


def _signature(function: Callable[..., Any]) -> str:
    signature = inspect.signature(function)
    lines: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in lines:
            lines.append("*")
        lines.append(re.sub(r": '([^']*)'", r": \1", str(parameter)))
    inner = "".join(f"    {line},\n" for line in lines)
    return f"```python\n{function.__name__}(\n{inner}) -> {signature.return_annotation}\n```"


def _markdown(documented: object) -> str:
    """A docstring: paragraphs as they are, sections of arguments as lists."""
    text = re.sub(r":\w+:`([^`]+)`", r"`\1`", inspect.getdoc(documented) or "").replace("``", "`")
    text = re.sub(r"^(\w+:)$", lambda line: f"**{_SECTIONS[line[1]]}**\n", text, flags=re.MULTILINE)
    return re.sub(r"^    (\w+): ", r"- `\1`: ", text, flags=re.MULTILINE)


PAGES: dict[str, Callable[[], str]] = {"api": api, "config": configuration, "schema": schema}
"""What the command prints."""

if __name__ == "__main__":
    print(PAGES[sys.argv[1]](), end="")
