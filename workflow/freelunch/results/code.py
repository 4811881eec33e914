"""What code made a result: library versions, and a hash of the modules that compute it.

The hash covers a stage's module and what it imports, at any depth, of the rooms whose code decides numbers. It is taken
over syntax trees without docstrings, comments, annotations, imports and messages of errors: where a module lies, and
what it says, reruns nothing; an edit of what it computes reruns the stages that import it. What only some specs of a
stage use, such as methods, is imported by name (``import_module``), and counts where ``Spec.modules`` names it.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
COMPUTING = ("pruning", "engine", "recover", "inputs", "evaluate", "stages", "vision")
"""Rooms whose code decides numbers; the others say what is computed, keep it and show it."""
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "datasets", "numpy", "snakemake")


def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that shape its numbers."""
    from freelunch import __version__

    installed = {"freelunch": __version__}
    for library in LIBRARIES:
        try:
            installed[library] = version(library)
        except PackageNotFoundError:
            continue
    return installed


def code_digest(modules: Iterable[str], files: Iterable[Path] = ()) -> str:
    """Hash of what modules of the package (such as ``stages.prune``) compute, and of the contents of other files."""
    digests = {_digest(path) for module in modules for path in sources(module)}
    digests |= {hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()[:16]


@cache
def sources(module: str) -> frozenset[Path]:
    """Files that compute when a module runs: its own, and those of computing rooms that it imports."""
    seen: set[Path] = set()
    pending = list(_files(module))
    while pending:
        path = pending.pop()
        if path not in seen:
            seen.add(path)
            pending += [each for name in _imports(path) for each in _files(name)]
    return frozenset(seen)


def _files(module: str) -> Iterator[Path]:
    """The file of a module, if it is one of a computing room."""
    parts = module.split(".")
    if parts[0] in COMPUTING:
        base = PACKAGE.joinpath(*parts)
        yield from (path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file())


def _imports(path: Path) -> Iterator[str]:
    """Names, below the package, of what a file imports when it runs: modules, and what may be modules in packages."""
    for node in _running(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            module = (node.module or "").partition(".")[2]
            yield module
            yield from (f"{module}.{alias.name}" if module else alias.name for alias in node.names)


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only type checkers see."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not _for_types(child):
            yield from _running(child)


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@cache
def _digest(path: Path) -> str:
    """Hash of what a file computes."""
    tree = _Computation().visit(ast.parse(path.read_text(encoding="utf-8")))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


class _Computation(ast.NodeTransformer):
    """Removes what computes nothing from a syntax tree."""

    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if _for_types(node) else self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.Raise(exc=None, cause=None)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(arg=node.arg)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)
