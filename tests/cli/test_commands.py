"""``freelunch run`` and ``freelunch doctor``."""

from __future__ import annotations

import shutil
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from freelunch.__main__ import find, main
from freelunch.doctor import (
    Finding,
    check_compiler,
    check_hub,
    check_locks,
    check_needs,
    check_torch,
    check_versions,
    check_writing,
    examine,
)
from freelunch.errors import FreelunchError
from freelunch.plan.plan import Plan
from stage_runs import tiny_config, tiny_plan


def config(folder: Path) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tiny_config()))
    return str(path)


def test_a_result_is_made_with_what_it_lacks_and_then_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = next(spec for spec in tiny_plan().stage("pruned").values() if spec.label == "tiny-wanda-50")
    command = ["--config", config(tmp_path), "run", spec.key]
    assert main([*command, "--dry-run"]) == 0
    stages = [line.split()[2] for line in capsys.readouterr().out.splitlines() if line.startswith("would run")]
    assert stages == ["models:", "data:", "calibration:", "dense:", "pruned:"]
    assert not (tmp_path / spec.manifest).exists()
    assert main(command) == 0 and (tmp_path / spec.manifest).is_file()
    capsys.readouterr()
    assert main(command) == 0 and "nothing to do" in capsys.readouterr().out


def test_a_label_means_the_evaluation_and_wrong_names_are_one_line() -> None:
    plan = tiny_plan()
    assert find(plan, "tiny-wanda-50").stage == "evaluation"
    with pytest.raises(FreelunchError, match="nothing called 'tiny-wander-50'"):
        find(plan, "tiny-wander-50")


def test_versions_are_compared_with_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text("torch==2.0.0\nnumpy==1.0\n")
    (found,) = check_versions(lock, lambda name: "2.0.0+cpu" if name == "torch" else "1.0")
    assert found.level == "ok"
    (found,) = check_versions(lock, lambda name: "2.1.0")
    assert found.level == "warning" and "torch 2.1.0 (the lock has 2.0.0)" in found.text

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    assert {each.level for each in check_versions(lock, missing)} >= {"problem"}


def test_locks_and_folders_that_cannot_be_written_are_found(tmp_path: Path) -> None:
    assert check_locks(tmp_path).level == "ok" and check_writing(tmp_path).level == "ok"
    (tmp_path / ".snakemake/locks").mkdir(parents=True)
    (tmp_path / ".snakemake/locks/0.input.lock").touch()
    assert check_locks(tmp_path).level == "warning"
    (tmp_path / "file").touch()
    assert check_writing(tmp_path / "file").level == "problem"


def planned(**execution: object) -> Plan:
    return tiny_plan(tiny_config() | {"execution": {"device": "cpu"} | execution})


def test_the_device_that_jobs_would_take_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = check_torch(planned(device="cuda"))
    assert found.level == "problem" and "torch sees no accelerator" in found.text
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    found = check_torch(planned())
    assert found.level == "warning" and f"torch {torch.__version__} on cpu" in found.text
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert check_torch(planned()).level == "ok"


def test_a_compiler_is_looked_for_where_one_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert check_compiler(planned()).level == "ok"
    assert check_compiler(planned(compile=True)).level == "problem"
    (tmp_path / "g++").write_text("")
    (tmp_path / "g++").chmod(0o755)
    assert check_compiler(planned(compile=True)) == Finding("compiler", "ok", str(tmp_path / "g++"))
    monkeypatch.setenv("CXX", "absent++")
    assert check_compiler(planned(compile=True)).level == "problem"


def test_disk_and_memory_are_compared_with_the_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (found,) = check_needs(tiny_plan(), "tiny", tmp_path)
    assert found.level == "ok" and "GiB of disk" in found.text
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1, used=1, free=2**10))
    (found,) = check_needs(tiny_plan(), "tiny", tmp_path)
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
    assert check_hub(tiny_plan(), "tiny").level == "ok"
    found = check_hub(plan, "tiny")
    assert found.level == "warning" and "meta-llama/Llama-3.2-1B" in found.text and "HF_TOKEN" in found.text
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert check_hub(plan, "tiny").level == "ok"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = check_hub(plan, "tiny")
    assert found.level == "problem" and "HF_HUB_OFFLINE" in found.text
    (tmp_path / "hub/models--meta-llama--Llama-3.2-1B").mkdir(parents=True)
    assert check_hub(plan, "tiny").level == "ok"


def test_all_checks_are_made(tmp_path: Path) -> None:
    found = [each.check for each in examine(tiny_plan(), "tiny", tmp_path)]
    assert found == ["versions", "torch", "compiler", "needs", "hub", "lock", "results"]
