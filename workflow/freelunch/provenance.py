"""What made a result: library versions, and the source files a stage runs."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGE = Path(__file__).parent
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "datasets", "numpy", "snakemake")


def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that shape its numbers."""
    from . import __version__

    found = {"freelunch": __version__}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


@cache
def sources(module: str) -> tuple[str, ...]:
    """Files of this package that importing ``module`` (such as ``stages.prune``) can run, found from the imports."""
    seen: set[Path] = set()
    pending = [_file(tuple(module.split(".")))]
    while pending:
        path = pending.pop()
        if path is None or path in seen:
            continue
        seen.add(path)
        pending.extend(_imports(path))
    return tuple(sorted(str(path) for path in seen))


def code_digest(files: Iterable[str]) -> str:
    """Hash over the contents of source files."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()[:16]


def _file(parts: tuple[str, ...]) -> Path | None:
    base = PACKAGE.joinpath(*parts)
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a module but those that only type checkers see."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"):
            yield from _run(child)


def _imports(path: Path) -> list[Path | None]:
    here = path.relative_to(PACKAGE).parts[:-1]
    found: list[Path | None] = []
    for node in _run(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1] + tuple((node.module or "").split(".") if node.module else ())
            found.append(_file(base) if base else None)
            found.extend(_file((*base, alias.name)) for alias in node.names)
    return found
