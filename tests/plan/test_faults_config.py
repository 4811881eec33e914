"""Configs that are made to harm: YAML bombs, keys that are there twice, names that are paths or commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from freelunch.__main__ import main
from freelunch.errors import FreelunchError
from freelunch.inputs.documents import documents_of
from freelunch.plan.config import Hub, Wheel, parse_config
from freelunch.plan.plan import make_plan
from freelunch.plan.section import validate
from freelunch.plan.yaml_files import read_yaml
from stage_runs import tiny_config, tiny_plan


def bomb(first: str, level: str) -> str:
    """Anchors of anchors: a few lines that stand for 9 ** 12 values."""
    lines = [f"a{each}: &a{each} " + level.format(", ".join([f"*a{each - 1}"] * 9)) for each in range(1, 12)]
    return "\n".join([f"a0: &a0 {first}", *lines])


LAUGHS = bomb("[lol, lol, lol]", "[{}]")
MERGES = bomb("{x: 1, y: 2}", "{{<<: [{}]}}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, r" line \d+: its anchors stand for more than 1,000,000 values"),
        (MERGES, r" line \d+: its anchors stand for more than 1,000,000 values"),
        ("a: &a [1, *a]", r" line 1: an anchor stands for something that it is a part of"),
        ("a: " + "[" * 5000, r" is nested too deeply"),
        ("a: " + "{b: " * 5000, r" is nested too deeply"),
        ("- " * 5000, r" is nested too deeply"),
        ("a: 1\nb: 2\na: 3", r" line 3: the key 'a' is there twice; keep one"),
        ("models:\n  m: {path: x, path: y}", r" line 2: the key 'path' is there twice"),
        ("a: !!python/object/apply:os.system ['touch ran']", r" line 1: could not determine a constructor"),
        ("a: 2001-99-99", r" a value is not what it is written as: month must be in 1..12"),
        ("a: " + "9" * 5000, r" a value is not what it is written as: "),
        ("a: !!bool perhaps", r" a value is not what it is written as: "),
        ("? [1]\n: 2", r" line 1: while constructing a mapping, found unhashable key"),
        ("a: 1\n--- \nb: 2", r" line 2: expected a single document in the stream, but found another document"),
        ("a: &x 1\nb: &x 2", r" line 2: found duplicate anchor 'x'; first occurrence, second occurrence"),
        ("a: \0", r" unacceptable character #x0000: special characters are not allowed"),
    ],
    ids=[
        "laughs", "merges", "itself", "lists", "mappings", "dashes", "twice", "twice inside", "code", "date", "digits",
        "bool", "unhashable", "documents", "anchors", "characters",
    ],
)  # fmt: skip
def test_yaml_that_is_made_to_harm_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(FreelunchError, match=f"^{path}:{message}"):
        read_yaml(path)


def test_anchors_and_their_merges_are_read_as_ever(tmp_path: Path) -> None:
    text = "a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\n"
    (tmp_path / "x.yaml").write_text(text)
    assert read_yaml(tmp_path / "x.yaml") == yaml.safe_load(text)
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "empty.yaml") is None


def test_a_bomb_that_another_reader_made_is_shown_cut() -> None:
    bomb: Any = ["lol"] * 9
    for _ in range(30):
        bomb = [bomb] * 9
    for raw in ({"models": bomb}, {"default_suite": bomb}, {"execution": {"device": bomb}}):
        with pytest.raises(FreelunchError) as caught:
            parse_config(tiny_config() | raw)
        assert len(str(caught.value)) < 2000


NAMES = ("../escaped", "/etc/passwd", "a/b", "a b", "$(touch ran)", "`touch ran`", "a;ls", "-rf", ".hidden", "a\nb",
         "{name}", "naïve", "日本", "a" * 300, "", "a\0b", "..", "~root")  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=[ascii(name)[:12] for name in NAMES])
def test_names_that_are_paths_or_commands_are_refused(name: str) -> None:
    for section in ("models", "data", "suites"):
        raw = tiny_config()
        raw[section][name] = next(iter(raw[section].values()))
        with pytest.raises(FreelunchError, match=section):
            parse_config(raw)
    pin = {"package": "x", "version": "1", "sha256": "0" * 64, "member": "x"}
    for changes in ({"package": name}, {"version": name}):
        with pytest.raises(FreelunchError, match=next(iter(changes))):
            validate(Wheel, pin | changes)
    for repository in (name, f"{name}/model", f"someone/{name}"):
        if repository not in ("a/b",):
            with pytest.raises(FreelunchError, match="id"):
                validate(Hub, {"id": repository, "revision": "0" * 40})


def test_the_longest_names_make_paths_that_can_be_made(tmp_path: Path) -> None:
    raw = tiny_config()
    long = "m" * 100
    raw["models"][long] = raw["models"].pop("tiny")
    raw["suites"][long] = raw["suites"].pop("tiny")
    raw["default_suite"], raw["suites"][long]["defaults"]["model"] = long, long
    for spec in make_plan(parse_config(raw)).specs.values():
        (tmp_path / spec.folder).mkdir(parents=True)
        (tmp_path / "results" / "logs").mkdir(exist_ok=True)
        (tmp_path / "results" / "logs" / f"{spec.name}.log").touch()


def test_axes_that_multiply_to_more_than_can_be_run_are_refused_at_once() -> None:
    raw = tiny_config()
    raw["suites"]["tiny"]["runs"] = [{"criterion": "wanda", "pattern": "50%", "seed": list(range(1000)),
                                      "sequences": list(range(1, 1000))}]  # fmt: skip
    with pytest.raises(FreelunchError, match=r"suites\.tiny\.runs\[0\]: its lists multiply to more than"):
        make_plan(parse_config(raw))


def test_half_of_a_surrogate_pair_is_no_text() -> None:
    source = tiny_plan().config.data["documents"]
    with pytest.raises(FreelunchError, match=r"^data\.x\.text: record 0 is no text"):
        list(documents_of([("", {"text": "\ud800", "title": "t"})], source, "data.x"))


@pytest.mark.parametrize("text", [LAUGHS, "default_suite: a\ndefault_suite: b\n"], ids=["bomb", "twice"])
def test_the_command_stops_at_such_a_file_with_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert main(["--config", str(tmp_path / "config.yaml"), "plan"]) == 1
    line = capsys.readouterr().err
    assert len(line.splitlines()) == 1 and "config.yaml: line" in line
