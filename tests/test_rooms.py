"""The layout of the package: imports between its rooms point one way, names are there once, and it does not grow."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from benchmarks.measures import PACKAGE, parts

ORDER = (
    "errors", "pruning", "engine", "recover", "plan", "results", "inputs", "evaluate", "costs", "report", "budget",
    "stages", "vision", "job", "runner", "library", "doctor", "reference", "__main__",
)  # fmt: skip
"""Rooms, and modules in none; each may import those before it. ``freelunch/__init__`` plugs them together."""
UPWARD = {
    ("plan", "inputs"),  # the names of the local questions, and the fields of a record that they take
    ("engine", "results"), ("stages", "vision"), ("budget", "vision"),
}  # fmt: skip
"""Known exceptions. None may be added."""
TWICE = {"costs", "reconstruct", "repair", "views"}
"""Known names of several modules. None may be added."""
CIRCLES = {("stages.network", "stages.pruning")}
"""Known arrows that close a circle. None may be added."""
LIMITS = {
    "package without vision": (17_730, 112),
    "rules and scripts": (350, 7),
    "README.md": (130, 1),
    "docs/architecture.md": (260, 1),
    "config.yaml": (400, 1),
    "tests": (19_500, 94),
}
"""Lines and files. They may only be lowered: who needs room makes some."""


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in PACKAGE.rglob("*.py")}


def imported(node: ast.AST) -> Iterator[str]:
    """Modules of the package that are imported below a node; what only type checkers see is left out."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
        module = (node.module or "").partition(".")[2]
        names = (f"{module}.{alias.name}".lstrip(".") for alias in node.names)
        yield from (name if name in MODULES else module for name in names)
    for child in ast.iter_child_nodes(node):
        yield from imported(child)


IMPORTS = {
    name: set(imported(ast.parse(path.read_text(encoding="utf-8")))) - {name, ""} for name, path in MODULES.items()
}


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_room_has_its_rank() -> None:
    assert {room(module) for module in MODULES} - {""} == set(ORDER)


def test_imports_between_rooms_point_one_way() -> None:
    arrows = [
        (name, other) for name, others in IMPORTS.items() if name for other in others if room(name) != room(other)
    ]
    upward = [(name, other) for name, other in arrows if ORDER.index(room(name)) < ORDER.index(room(other))]
    assert not [arrow for arrow in upward if (room(arrow[0]), room(arrow[1])) not in UPWARD]


def test_no_modules_import_each_other() -> None:
    try:
        known = {name: {other for other in others if (name, other) not in CIRCLES} for name, others in IMPORTS.items()}
        TopologicalSorter(known).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_no_two_modules_have_one_name() -> None:
    named = defaultdict(list)
    for name, path in MODULES.items():
        if path.stem != "__init__" and not {"criteria", "stages"} & {*name.split(".")}:
            named[path.stem].append(name)
    assert not {stem: names for stem, names in named.items() if len(names) > 1 and stem not in TWICE}


def test_nothing_has_grown() -> None:
    sizes = parts()
    grown = {
        name: sizes[name] for name, limit in LIMITS.items() if sizes[name][0] > limit[0] or sizes[name][1] > limit[1]
    }
    assert not grown, f"limits: {LIMITS}"
