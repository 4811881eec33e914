"""The hash of code: an edit of what is computed changes it, and words, types and places do not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freelunch.plan.config import ZeroShotTask
from freelunch.plan.spec import STAGES
from freelunch.results import code
from freelunch.results.code import COMPUTING, PACKAGE, code_digest, sources
from freelunch.stages import code_of, function_of
from one_of_each import SPECS

SOURCE = '''"""A module."""
from freelunch.pruning.patterns import NM

SIZE: int = 3
"""Rows."""


def halve(value: float, *, deep: bool = False) -> float:
    """Half of a value."""
    if deep:
        raise ValueError(f"{value} is too deep")
    return value / 2
'''


@pytest.fixture
def digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Hash of a package that has one module, ``prune.halves``."""
    monkeypatch.setattr(code, "PACKAGE", tmp_path)

    def of(text: str) -> str:
        path = tmp_path / "pruning" / "halves.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        code.sources.cache_clear()
        code._digest.cache_clear()
        return code_digest(["pruning.halves"])

    yield of
    code.sources.cache_clear()
    code._digest.cache_clear()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("A module.", "Another text."), ("Half of a value.", "One half."), ('"""Rows."""', "# rows"),
        ("is too deep", "cannot be"), ("freelunch.pruning.patterns", "freelunch.engine.patterns"),
        ("value: float, *", "value, *"), ("-> float", ""), ("\n\n\n", "\n# why\n"),
    ],
)  # fmt: skip
def test_words_types_and_places_count_for_nothing(old: str, new: str, digest) -> None:
    assert old in SOURCE and digest(SOURCE) == digest(SOURCE.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [("value / 2", "value / 3"), ("= 3", "= 4"), ("deep: bool = False", "deep: bool = True"),
     ("if deep", "if not deep"),
     ("def halve", "def third")],
)  # fmt: skip
def test_what_is_computed_counts(old: str, new: str, digest) -> None:
    assert old in SOURCE and digest(SOURCE) != digest(SOURCE.replace(old, new))


@settings(deadline=None)
@given(st.sampled_from([path for room in COMPUTING for path in sorted((PACKAGE / room).rglob("*.py"))]), st.data())
def test_any_number_of_any_file_counts(path: Path, data: st.DataObject) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    raised = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Raise) for inner in ast.walk(node)}
    numbers = [node for node in ast.walk(tree)
               if isinstance(node, ast.Constant) and type(node.value) is float and id(node) not in raised]  # fmt: skip
    before = ast.dump(code._Computation().visit(ast.parse(path.read_text(encoding="utf-8"))))
    if numbers:
        data.draw(st.sampled_from(numbers)).value += 0.125
        assert ast.dump(code._Computation().visit(tree)) != before


def names(module: str) -> set[str]:
    return {path.relative_to(PACKAGE).as_posix() for path in sources(module)}


def test_every_stage_has_code_and_only_what_a_spec_uses_counts() -> None:
    assert STAGES.keys() == SPECS.keys() and all(map(function_of, SPECS.values()))
    assert len({code_of(spec) for spec in SPECS.values()}) == len(SPECS) - 1  # a shard is a part of a reconstruction
    pruned = names("stages.pruned")
    assert {"pruning/selection.py", "pruning/structured.py", "pruning/matrix.py", "pruning/patterns.py"} <= pruned
    assert not {f"pruning/criteria/{name}.py" for name in ("wanda", "sparsegpt", "ria")} & pruned
    assert "pruning/refinements.py" not in pruned
    assert "pruning/criteria/sparsegpt.py" in {name for module in SPECS["pruned"].modules for name in names(module)}
    assert not {"pruning/selection.py", "recover/trainable.py"} & names("stages.dense")
    trained = names("stages.reconstructed") | names("stages.retrained")
    assert {"recover/trainable.py", "recover/parametrizations.py"} <= trained
    assert not any(name.startswith(("plan/", "report/", "results/")) for stage in STAGES for name in trained)


def test_perplexities_do_not_depend_on_zero_shot_tasks() -> None:
    evaluation = SPECS["evaluation"]
    plain = evaluation.changed(tasks=[task for task in evaluation.tasks if not isinstance(task, ZeroShotTask)])
    assert evaluation.modules == ["evaluate.zero_shot"] and plain.modules == []
    zero_shot = {"evaluate/zero_shot.py", "evaluate/lm.py", "inputs/questions.py"}
    assert zero_shot <= names("evaluate.zero_shot") and not zero_shot & names("stages.evaluation")
