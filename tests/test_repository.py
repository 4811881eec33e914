"""What holds the repository together: one set of pins, rules that log, docs that do not drift."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from freelunch.plan.spec import STAGES

ROOT = Path(__file__).parents[1]
RULES = sorted((ROOT / "workflow/rules").glob("*.smk"))
ENVIRONMENTS = [ROOT / "environment.yml", *sorted((ROOT / "envs").glob("*.yaml"))]


def plain(name: str) -> str:
    return re.split(r"[\[<>=!~ ]", name)[0].lower().replace("_", "-")


def lock() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return dict(pin(line) for line in lines if line and not line.startswith("#"))


def pin(line: str) -> tuple[str, str]:
    match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9._+!-]+)", line.strip())
    assert match, f"not an exact pin: {line!r}"
    return plain(match[1]), match[2]


def rules() -> list[str]:
    """The text of every rule that runs something, without what is left of it in a loop."""
    texts = (re.sub(r"(?m)^    (?=    )", "", path.read_text(encoding="utf-8")) for path in RULES)
    parts = [part for text in texts for part in re.split(r"(?m)^ *rule\b", text)[1:]]
    return [part for part in parts if "script:" in part]


def test_the_lock_pins_torch_exactly_and_names_no_cuda_package() -> None:
    assert lock()["torch"] == "2.13.0"
    assert not [name for name in lock() if name.startswith(("nvidia", "triton", "cuda"))]


def test_everything_the_project_declares_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert not {plain(name) for name in declared} - lock().keys()


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.name)
def test_conda_environments_have_the_pins_of_the_lock(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    (pip,) = [entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict)]
    pins = dict(pin(line) for line in pip if not line.startswith("-"))
    assert pins and {name: lock()[name] for name in pins} == pins
    if path.name == "environment.yml":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert {plain(name) for name in project["dependencies"]} == pins.keys()


def test_every_rule_logs_and_those_that_compute_state_their_needs() -> None:
    for text in rules():
        assert "\n    log:\n" in text and "\n    conda:\n" in text, text
        if "stage.py" in text or "fetch.py" in text:
            assert "\n    benchmark:\n" in text and "mem_mb=" in text and "runtime=" in text, text
    assert all(kind.work and kind.minutes for kind in STAGES.values())


def test_every_environment_is_used_by_a_rule() -> None:
    used = set(re.findall(r"envs/(\w+\.yaml)", "".join(rules())))
    assert used == {path.name for path in ENVIRONMENTS[1:]}


def test_nothing_in_the_package_imports_snakemake() -> None:
    for path in (ROOT / "workflow/freelunch").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) snakemake", path.read_text(encoding="utf-8"), re.MULTILINE), path


def test_no_family_of_models_is_treated_by_name() -> None:
    for path in (ROOT / "workflow/freelunch").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"""["'](llama|qwen|mistral|gemma|opt|phi)\w*["'] (in|==)""", text), path


def test_the_documents_have_no_gaps_and_no_dead_links() -> None:
    """Those that are no part of the site; ``make docs`` checks the others."""
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/README.md"):
        path = ROOT / name
        for link, _, anchor in re.findall(r"\]\((?!http)([^)#]+)(#([^)]+))?", path.read_text(encoding="utf-8")):
            target = path.parent / link
            assert target.exists(), f"{name}: {link}"
            assert not anchor or anchor in anchors(target), f"{name}: {link}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Of the headings of a page, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
