"""The reference of the functions for Python, as Markdown: ``python -m freelunch.reference > docs/api.md``."""

from __future__ import annotations

import inspect
import re

from . import library
from .library import Pruned, perplexity, prune, reconstruct, save

_SECTIONS = {"Args": "Arguments", "Attributes": "Attributes", "Raises": "Fails with"}


def reference() -> str:
    """The whole page."""
    parts = [
        "# Reference: freelunch from Python",
        "Written by `make api` from the docstrings of `workflow/freelunch/library.py`. Import from `freelunch`.",
        _markdown(inspect.getdoc(library) or ""),
        *(_function(each) for each in (prune, reconstruct, perplexity, save)),
        "## Pruned",
        _markdown(inspect.getdoc(Pruned) or ""),
    ]
    for name, member in vars(Pruned).items():
        if isinstance(member, property):
            parts.append(f"`{name}`: {_markdown(inspect.getdoc(member) or '')}")
    return "\n\n".join(parts) + "\n"


def _function(function: object) -> str:
    assert inspect.isfunction(function)
    signature = inspect.signature(function)
    lines = "".join(f"    {_parameter(each)},\n" for each in _with_star(list(signature.parameters.values())))
    head = f"```python\n{function.__name__}(\n{lines}) -> {signature.return_annotation}\n```"
    return f"## {function.__name__}\n\n{head}\n\n{_markdown(inspect.getdoc(function) or '')}"


def _with_star(parameters: list[inspect.Parameter]) -> list[inspect.Parameter | str]:
    first = next((i for i, each in enumerate(parameters) if each.kind is each.KEYWORD_ONLY), None)
    return [*parameters] if first is None else [*parameters[:first], "*", *parameters[first:]]


def _parameter(parameter: inspect.Parameter | str) -> str:
    text = str(parameter)
    return re.sub(r": '([^']*)'", r": \1", text)


def _markdown(docstring: str) -> str:
    """Paragraphs as they are, sections of arguments as lists."""
    text = re.sub(r":\w+:`([^`]+)`", r"`\1`", docstring).replace("``", "`")
    lines = []
    for line in text.splitlines():
        if (title := line.removesuffix(":")) in _SECTIONS and line.endswith(":"):
            lines += [f"**{_SECTIONS[title]}**", ""]
        elif line.startswith("    "):
            lines.append(re.sub(r"^    (\w+): ", r"- `\1`: ", line))
        else:
            lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    print(reference(), end="")
