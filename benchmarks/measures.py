"""``python -m benchmarks.measures``: lines and files of the package, room by room, and of what is around it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pandas import DataFrame

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "workflow" / "freelunch"


def size(files: Iterable[Path]) -> tuple[int, int]:
    """Lines and number of files."""
    counts = [len(path.read_text(encoding="utf-8").splitlines()) for path in files]
    return sum(counts), len(counts)


def rooms() -> dict[str, tuple[int, int]]:
    """Size of every folder of the package, and of the modules beside them."""
    folders = sorted(path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__")
    return {"modules in no room": size(PACKAGE.glob("*.py"))} | {
        folder.name: size(folder.rglob("*.py")) for folder in folders
    }


def parts() -> dict[str, tuple[int, int]]:
    """Size of the package without and with ``vision``, of what runs it, of what is written of it, and of the tests."""
    modules, workflow = list(PACKAGE.rglob("*.py")), ROOT / "workflow"
    return {
        "package without vision": size(path for path in modules if PACKAGE / "vision" not in path.parents),
        "package": size(modules),
        "rules and scripts": size([ROOT / "Snakefile", *workflow.glob("rules/*.smk"), *workflow.glob("scripts/*.py")]),
        "README.md": size([ROOT / "README.md"]),
        "docs/architecture.md": size([ROOT / "docs" / "architecture.md"]),
        "docs": size(ROOT.glob("docs/*.md")),
        "config.yaml": size([ROOT / "config.yaml"]),
        "benchmarks": size((ROOT / "benchmarks").rglob("*.py")),
        "tests": size((ROOT / "tests").rglob("*.py")),
    }


def main() -> None:
    """Print both tables."""
    for name, sizes in (("room", rooms()), ("part", parts())):
        print(DataFrame(sizes, index=["lines", "files"]).T.rename_axis(columns=name).to_string(), end="\n\n")


if __name__ == "__main__":
    main()
