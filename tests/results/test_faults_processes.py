"""Two at work on the same results, processes that are killed, clocks that are wrong, directories with hostile names."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import kills
from freelunch.errors import FreelunchError
from freelunch.plan.spec import RESULTS
from freelunch.results.artifacts import MANIFEST, Artifact
from freelunch.results.stage import Stage, occupy
from freelunch.runner import Runner
from one_of_each import SHARDED, SPECS
from stage_runs import ROOT, run, tiny_config, tiny_plan

HOLD = """
import sys, time
from pathlib import Path
from freelunch.results.stage import occupy
from freelunch.plan.spec import parse_spec
import json
occupy(Path(sys.argv[1]), parse_spec(json.loads(sys.argv[2])))
print("held", flush=True)
time.sleep(600)
"""
ALONE = """
import fcntl, sys, time
with open(sys.argv[1], "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(600)
"""
NAMES = ("$(touch ran) `touch ran`; touch ran", "{name} [0-9]* ? 'q' \"q\"", "naïve 日本 🙂", "-rf")
SPEC = SPECS["models"]


@pytest.fixture
def other(tmp_path: Path) -> Callable[[], subprocess.Popen[str]]:
    """Starts a process that makes the model."""

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(tmp_path), SPEC.model_dump_json()]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    return start


def test_a_result_that_another_process_makes_is_left_to_it(
    tmp_path: Path, other: Callable[[], subprocess.Popen[str]]
) -> None:
    process = other()
    (tmp_path / SPEC.folder).mkdir(parents=True)
    theirs = tmp_path / SPEC.folder / ".config.json.1.part"
    theirs.write_text("half")
    try:
        with pytest.raises(FreelunchError, match=r"another process is making this result; wait until it is done"):
            Stage(SPEC, tmp_path, SHARDED, "code")
        assert theirs.exists()
        run(SPECS["data"], tmp_path, SHARDED)  # another result is nobody else's
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    # no process, no lock
    run(SPEC, tmp_path, SHARDED)
    assert not theirs.exists()


def test_who_is_done_or_gives_up_lets_others_make_it(
    tmp_path: Path, other: Callable[[], subprocess.Popen[str]]
) -> None:
    run(SPEC, tmp_path, SHARDED)
    stage = Stage(SPEC, tmp_path, SHARDED, "code")
    stage = Stage(SPEC, tmp_path, SHARDED, "code")  # the same process may start over
    stage.abandon()
    process = other()
    process.kill()
    process.wait()


def test_a_file_system_without_locks_does_not_stop_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", unsupported)
    occupy(tmp_path, SPEC)
    run(SPEC, tmp_path, SHARDED)


def test_results_that_are_deleted_and_made_again_can_be_occupied(tmp_path: Path) -> None:
    run(SPEC, tmp_path, SHARDED)
    shutil.rmtree(tmp_path / RESULTS)
    run(SPEC, tmp_path, SHARDED)


def test_two_runners_and_a_runner_beside_snakemake(tmp_path: Path) -> None:
    (tmp_path / RESULTS).mkdir()
    command = [sys.executable, "-c", ALONE, str(tmp_path / RESULTS / ".runner.lock")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    runner = Runner(tmp_path, SHARDED, 1.0)
    with pytest.raises(FreelunchError, match="another freelunch process is at work here; wait for it"):
        runner.need(SPEC)
    process.kill()
    process.wait()
    (tmp_path / ".snakemake" / "locks").mkdir(parents=True)
    (tmp_path / ".snakemake" / "locks" / "0.output.lock").touch()
    with pytest.raises(FreelunchError, match="Snakemake is at work here, or was killed; wait, or run"):
        runner.need(SPEC)


def test_dates_of_results_do_not_matter_to_the_runner(tmp_path: Path) -> None:
    runner = Runner(tmp_path, SHARDED, 1.0)
    spec = SPECS["pruned"]
    runner.need(spec)
    generator = random.Random(0)
    for path in (tmp_path / RESULTS).rglob("*"):
        moment = time.time() + generator.uniform(-1e8, 1e8) * (SPECS["data"].name not in str(path))
        os.utime(path, (moment, moment))
    assert Runner(tmp_path, SHARDED, 1.0).pending(spec) == []
    assert Artifact(tmp_path / spec.folder, spec).files


def test_a_source_dated_in_the_future_is_named(tmp_path: Path) -> None:
    raw = tiny_config()
    documents = tmp_path / "documents.jsonl"
    shutil.copy(ROOT / "tests/data/documents.jsonl", documents)
    raw["data"]["documents"]["path"] = str(documents)
    (spec,) = tiny_plan(raw).stage("data").values()
    runner = Runner(tmp_path, SHARDED, 1.0)
    runner.need(spec)
    os.utime(documents, (time.time() + 3e7, time.time() + 3e7))
    with pytest.raises(FreelunchError, match=f"^{documents}: is dated in the future, .*; correct the clock, or"):
        Runner(tmp_path, SHARDED, 1.0).pending(spec)
    os.utime(documents, (1e9, 1e9))
    assert Runner(tmp_path, SHARDED, 1.0).pending(spec) == []
    os.utime(documents, None)
    time.sleep(0.02)
    assert Runner(tmp_path, SHARDED, 1.0).pending(spec) == [spec]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_directories_can_be_called_anything(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / name
    root.mkdir()
    raw = tiny_config()
    shutil.copy(ROOT / "tests/data/documents.jsonl", root / f"{name}.jsonl")
    raw["data"]["documents"]["path"] = str(root / f"{name}.jsonl")
    spec = next(iter(tiny_plan(raw).stage("calibration").values()))
    made = Runner(root, SHARDED, 1.0).need(spec)
    assert made.file("tokens.safetensors").is_file() and not list(tmp_path.rglob("ran"))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_bit_that_is_different_is_told(tmp_path: Path) -> None:
    pipeline = kills.Pipeline(tmp_path / "copy", "tests/tiny.yaml", "small", one_process=True)
    run(SPECS["data"], pipeline.folder, SHARDED)
    before = pipeline.contents()
    assert before and MANIFEST in {Path(name).name for name in before}
    file = next(pipeline.folder / name for name in before if name.endswith(".jsonl"))
    file.write_bytes(file.read_bytes().replace(b"e", b"a", 1))
    assert kills.different(pipeline.contents(), before) == [str(file.relative_to(pipeline.folder))]
