"""``freelunch run`` and ``freelunch doctor``."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import yaml

from freelunch.__main__ import main
from freelunch.commands import find
from freelunch.doctor import check_locks, check_versions, check_writing
from freelunch.errors import FreelunchError
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
