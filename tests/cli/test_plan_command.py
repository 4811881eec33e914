"""``python -m freelunch plan``, as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from freelunch.plan.config import parse_config
from freelunch.plan.plan import make_plan
from freelunch.plan.yaml_files import read_yaml
from study import BASE

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests/tiny.yaml"


def python(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    path = {"PYTHONPATH": str(ROOT / "workflow")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=os.environ | path | environment,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_plan_loads_no_library_of_models() -> None:
    heavy = "{'torch', 'transformers', 'lm_eval'}"
    done = python("-c", f"import sys, freelunch.plan.plan, freelunch.__main__; print(*(sys.modules.keys() & {heavy}))")
    assert done.returncode == 0 and done.stdout.split() == []


def test_the_command_lists_every_run_and_stage(tmp_path: Path) -> None:
    done = python("-m", "freelunch", "--config", str(TINY), "plan", "--runs", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    plan = make_plan(parse_config(read_yaml(TINY)))
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.endswith("to do")]
    assert listed == [run.name for run in plan.runs["tiny"]] and len(listed) == 15
    table = {words[0]: words[1:] for line in done.stdout.splitlines() if len(words := line.split()) >= 5}
    needed = [spec.stage for spec in plan.needed("tiny")]
    assert all(table[stage][:2] == [str(needed.count(stage)), "0"] for stage in needed)
    assert int(table["total"][0]) == len(needed)


def test_the_command_stops_without_a_word_when_nobody_reads_on() -> None:
    command = [sys.executable, "-m", "freelunch", "--config", str(ROOT / "config.yaml"), "plan", "paper", "--runs"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "workflow")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline().startswith(b"suite paper")
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_later_config_files_are_merged_over_earlier_ones(tmp_path: Path) -> None:
    over = {"suites": {"tiny": {"defaults": {"sequences": 4}}}}
    (tmp_path / "over.yaml").write_text(yaml.safe_dump(over))
    configs = ["--config", str(TINY), "--config", "over.yaml"]
    done = python("-m", "freelunch", *configs, "plan", "--runs", cwd=tmp_path)
    raw = read_yaml(TINY)
    raw["suites"]["tiny"]["defaults"]["sequences"] = 4
    wanted = [run.name for run in make_plan(parse_config(raw)).runs["tiny"]]
    assert [line.split()[0] for line in done.stdout.splitlines() if line.endswith("to do")] == wanted


FAILURES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no such suite": (lambda path: path.write_text(yaml.safe_dump(BASE)), "no suite 'studdy'; did you mean 'study'?"),
    "no file": (lambda path: None, "cannot read"),
    "no mapping": (lambda path: path.write_text("- 1\n"), "is not a mapping"),
    "no yaml": (lambda path: path.write_text("a: [\n"), "line 2"),
}


@pytest.mark.parametrize(("prepare", "message"), FAILURES.values(), ids=FAILURES)
def test_the_command_fails_with_one_line_and_status_1(
    tmp_path: Path, prepare: Callable[[Path], Any], message: str
) -> None:
    prepare(tmp_path / "config.yaml")
    done = python("-m", "freelunch", "plan", "studdy", cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and message in done.stderr
