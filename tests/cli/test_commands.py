"""``python -m freelunch``: what its commands print and do, and the one line by which they fail."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from freelunch import doctor
from freelunch.__main__ import find, load, main
from freelunch.budget import TFLOPS, budget
from freelunch.errors import FreelunchError
from freelunch.plan.plan import Plan
from stage_runs import ROOT, tiny_config, tiny_plan

TINY = ROOT / "tests/tiny.yaml"
Command = Callable[..., str]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command on the tiny config, in an empty folder; gives what it prints, or the line by which it fails."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny_config()))

    def run(*arguments: str, fails: bool = False) -> str:
        status = main([*arguments])
        out, err = capsys.readouterr()
        assert status == int(fails)
        return err if fails else out

    return run


# --- plan ------------------------------------------------------------------------------------------------------------


def test_runs_are_listed_on_demand_and_stages_always(command: Command) -> None:
    plan, text = tiny_plan(), command("plan", "--runs")
    names = [run.name for run in plan.runs["tiny"]]
    assert [line.split()[0] for line in text.splitlines() if line.endswith("to do")] == names and len(names) == 15
    assert "15 runs" in text and "396 TFLOP/s" in text
    table = {words[0]: words[1:] for line in text.splitlines() if len(words := line.split()) >= 5}
    needed = [spec.stage for spec in plan.needed("tiny")]
    assert all(table[stage][:2] == [str(needed.count(stage)), "0"] for stage in needed)
    assert int(table["total"][0]) == len(needed)
    assert not [name for name in names if name in command("plan")]


def test_the_csv_adds_up_and_follows_the_rate(command: Command) -> None:
    rows, slow = (
        list(csv.DictReader(command("plan", "--csv", *more).splitlines())) for more in ((), ("--tflops", "1"))
    )
    assert [row["run"] for row in rows] == [run.name for run in tiny_plan().runs["tiny"]]
    operations = sum(float(row["operations"]) + float(row["shared_operations"]) for row in rows)
    assert operations == pytest.approx(budget(tiny_plan(), "tiny")["operations"].sum())
    for row, other in zip(rows, slow, strict=True):
        assert float(other["gpu_hours"]) == pytest.approx(float(row["gpu_hours"]) * TFLOPS)
        assert float(other["gpu_hours"]) == pytest.approx(float(row["operations"]) / 1e12 / 3600)


def test_targets_and_exports_are_those_of_the_runs_that_match(command: Command) -> None:
    plan = tiny_plan()
    targets = [run.evaluation.manifest for run in plan.runs["tiny"] if "magnitude" in run.name]
    assert command("plan", "--targets", "--match", "*magnitude*").split() == targets
    exports = command("plan", "--exports").split()
    assert len(exports) == len(plan.runs["tiny"]) - 1 and set(exports) <= plan.specs.keys()


def test_later_config_files_are_merged_over_earlier_ones(tmp_path: Path) -> None:
    (tmp_path / "over.yaml").write_text(yaml.safe_dump({"suites": {"tiny": {"defaults": {"sequences": 4}}}}))
    raw = yaml.safe_load(TINY.read_text())
    raw["suites"]["tiny"]["defaults"]["sequences"] = 4
    assert load([TINY, tmp_path / "over.yaml"]).specs.keys() == tiny_plan(raw).specs.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "tinny"], "there is no suite 'tinny'; did you mean 'tiny'?"),
        (["plan", "--match", "nothing"], "no run of suite tiny matches 'nothing'; --runs lists them"),
        (["memory", "tyni"], "there is no suite 'tyni'"),
        (["memory", "--model", "tinny"], "model: there is no 'tinny'; did you mean 'tiny'?"),
        (["run", "tiny-wander-50"], "the plan has nothing called 'tiny-wander-50'; did you mean 'tiny-wanda-50'?"),
        (["--config", "absent.yaml", "plan"], "cannot read absent.yaml"),
        (["--config", "list.yaml", "plan"], "list.yaml: is not a mapping"),
        (["--config", "broken.yaml", "plan"], "broken.yaml: line 2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_failure_is_one_line(arguments: list[str], message: str, command: Command, tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "broken.yaml").write_text("a: [\n")
    line = command(*arguments, fails=True)
    assert len(line.splitlines()) == 1 and line.startswith(message)


def test_a_rate_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--tflops", "0"])
    assert "--tflops must be above 0" in capsys.readouterr().err


def test_as_a_process_it_loads_no_library_of_models_and_stops_when_nobody_reads_on() -> None:
    heavy = "{'torch', 'transformers', 'lm_eval'}"
    code = (
        f"import sys, freelunch.__main__ as cli; print(*(sys.modules.keys() & {heavy}), flush=True);"
        "cli.main = lambda: print('line\\n' * 10**6); cli.run()"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "workflow")}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout and process.stderr
        assert (process.stdout.readline(), process.stdout.readline()) == (b"\n", b"line\n")
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


# --- run -------------------------------------------------------------------------------------------------------------


def test_a_result_is_made_with_what_it_lacks_and_then_taken(command: Command, tmp_path: Path) -> None:
    plan = tiny_plan()
    assert find(plan, "tiny-wanda-50").stage == "evaluation"
    spec = next(spec for spec in plan.stage("pruned").values() if spec.label == "tiny-wanda-50")
    assert all(find(plan, name) is spec for name in (spec.key, spec.name, f"{spec.folder}/", spec.manifest))
    with pytest.raises(
        FreelunchError, match=r"'tiny-documents-.*' is more than one: results/calibration/.*, results/de"
    ):
        find(plan, next(iter(plan.stage("dense").values())).label)
    lines = command("run", spec.key, "--dry-run").splitlines()
    stages = [line.split()[2] for line in lines if line.startswith("would run")]
    assert stages == ["models:", "data:", "calibration:", "dense:", "pruned:"]
    assert not (tmp_path / spec.manifest).exists()
    command("run", spec.key)
    assert (tmp_path / spec.manifest).is_file() and "nothing to do" in command("run", spec.key)


# --- doctor ----------------------------------------------------------------------------------------------------------


def test_all_checks_are_made(tmp_path: Path) -> None:
    found = [each.check for each in doctor.examine(tiny_plan(), "tiny", tmp_path)]
    assert found == ["versions", "torch", "compiler", "needs", "hub", "lock", "results"]


def test_versions_are_compared_with_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text("torch==2.0.0\nnumpy==1.0\n")
    (found,) = doctor.check_versions(lock, lambda name: "2.0.0+cpu" if name == "torch" else "1.0")
    assert found.level == "ok"
    (found,) = doctor.check_versions(lock, lambda name: "2.1.0")
    assert found.level == "warning" and "torch 2.1.0 (the lock has 2.0.0)" in found.text

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    assert {each.level for each in doctor.check_versions(lock, missing)} >= {"problem"}


def test_locks_and_folders_that_cannot_be_written_are_found(tmp_path: Path) -> None:
    assert doctor.check_locks(tmp_path).level == doctor.check_writing(tmp_path).level == "ok"
    (tmp_path / ".snakemake/locks").mkdir(parents=True)
    (tmp_path / ".snakemake/locks/0.input.lock").touch()
    assert doctor.check_locks(tmp_path).level == "warning"
    assert doctor.check_writing(tmp_path / ".snakemake/locks/0.input.lock").level == "problem"


def planned(**execution: object) -> Plan:
    return tiny_plan(tiny_config() | {"execution": {"device": "cpu"} | execution})


def test_the_device_that_jobs_would_take_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = doctor.check_torch(planned(device="cuda"))
    assert found.level == "problem" and "torch sees no accelerator" in found.text
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    found = doctor.check_torch(planned())
    assert found.level == "warning" and f"torch {torch.__version__} on cpu" in found.text
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert doctor.check_torch(planned()).level == "ok"


def test_a_compiler_is_looked_for_where_one_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert doctor.check_compiler(planned()).level == "ok"
    assert doctor.check_compiler(planned(compile=True)).level == "problem"
    (tmp_path / "g++").write_text("")
    (tmp_path / "g++").chmod(0o755)
    assert doctor.check_compiler(planned(compile=True)) == ("compiler", "ok", str(tmp_path / "g++"))
    monkeypatch.setenv("CXX", "absent++")
    assert doctor.check_compiler(planned(compile=True)).level == "problem"


def test_disk_and_memory_are_compared_with_the_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (found,) = doctor.check_needs(tiny_plan(), "tiny", tmp_path)
    assert found.level == "ok" and "GiB of disk" in found.text
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1, used=1, free=2**10))
    (found,) = doctor.check_needs(tiny_plan(), "tiny", tmp_path)
    assert found.level == "problem" and "disk" in found.text


def test_repositories_of_the_hub_are_looked_for_without_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    raw = tiny_config()
    raw["suites"]["tiny"]["defaults"]["model"] = "llama-3.2-1b"
    plan = tiny_plan(raw)
    for name in ("HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert doctor.check_hub(tiny_plan(), "tiny").level == "ok"
    found = doctor.check_hub(plan, "tiny")
    assert found.level == "warning" and "meta-llama/Llama-3.2-1B" in found.text and "HF_TOKEN" in found.text
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert doctor.check_hub(plan, "tiny").level == "ok"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = doctor.check_hub(plan, "tiny")
    assert found.level == "problem" and "HF_HUB_OFFLINE" in found.text
    (tmp_path / "hub/models--meta-llama--Llama-3.2-1B").mkdir(parents=True)
    assert doctor.check_hub(plan, "tiny").level == "ok"
