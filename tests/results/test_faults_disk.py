"""A disk that takes nothing: full at every stage, read-only, too small for a file."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from freelunch.errors import FreelunchError
from freelunch.job import foreseen, logged
from freelunch.plan.spec import STAGES, Spec
from freelunch.results.artifacts import Artifact
from freelunch.results.stage import Stage
from freelunch.runner import Runner
from freelunch.stages import function_of
from freelunch.stages.collect import collect
from one_of_each import SHARDED, SPECS, above

SIZE = 4 * 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a small file system here: {error}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True, timeout=10)


@contextmanager
def filled(disk: Path, left: int) -> Iterator[None]:
    """A disk with no more room than that."""
    state = os.statvfs(disk)
    filler = disk / "filler"
    with filler.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, max(1, state.f_bavail * state.f_frsize - left))
    yield
    filler.unlink()


def compute(spec: Spec, root: Path) -> None:
    """As a job does."""
    stage = Stage(spec, root, SHARDED, "code")
    with stage.computing():
        function_of(spec)(stage)


def outcome(made: Path, spec: Spec) -> dict[str, str]:
    files = Artifact(made / spec.folder, spec).manifest["files"]
    # records hold seconds, a card the evaluations that are there
    varying = {name for name in files if name == "README.md" or Path(name).match("window-*.json")}
    return {name: entry["sha256"] for name, entry in files.items() if name not in varying}


@pytest.mark.parametrize("left", [0, 4096, 32768])
@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_line_and_the_job_can_be_run_again(stage: str, left: int, made: Path, disk: Path) -> None:
    spec = SPECS[stage]
    for each in above(spec):
        (disk / each.folder).parent.mkdir(parents=True, exist_ok=True)
        (disk / each.folder).symlink_to(made / each.folder)
    needed = sum(entry["bytes"] for entry in Artifact(made / spec.folder, spec).manifest["files"].values())
    with filled(disk, left):
        try:
            compute(spec, disk)
        except Exception as error:
            line = foreseen(error)
            assert line is not None and re.search("no space left", line, re.IGNORECASE) and "\n" not in line
            assert str(disk) in line or "zero-shot" in line
            left_behind = [path.name for path in (disk / spec.folder).rglob("*")]
            assert "manifest.json" not in left_behind and not [name for name in left_behind if ".part" in name]
        else:
            assert needed < left, "it claims to have written more than there is room for"
    compute(spec, disk)
    assert outcome(disk, spec) == outcome(made, spec)


def test_rows_are_written_whole_or_not_at_all(made: Path, disk: Path) -> None:
    collect("tiny", [SPECS["evaluation"]], made, disk / "tiny")  # type: ignore[list-item]
    before = {path.name: path.read_bytes() for path in (disk / "tiny").iterdir()}
    with filled(disk, 0), pytest.raises(FreelunchError, match=r"cannot write .*rows\.csv: No space left on device"):
        collect("tiny", [SPECS["evaluation"]], made, disk / "tiny")  # type: ignore[list-item]
    assert {path.name: path.read_bytes() for path in (disk / "tiny").iterdir()} == before


def test_a_read_only_disk_is_one_line_to_stages_runners_logs_and_snakemake(made: Path, disk: Path) -> None:
    spec = SPECS["calibration"]
    (disk / "results").mkdir()
    for each in above(spec):
        shutil.copytree(made / each.folder, disk / each.folder)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, timeout=10)
    with pytest.raises(FreelunchError, match=r"^cannot write .*results/calibration/\S+: Read-only file system"):
        Stage(spec, disk, SHARDED, "code")
    with pytest.raises(FreelunchError, match=r"^cannot write to .*results: Read-only file system; free it"):
        Runner(disk, SHARDED, 1.0).need(spec)
    with (
        pytest.raises(SystemExit, match=r"^error: cannot use .*calibrate\.log: Read-only file system"),
        logged(disk / "results" / "calibrate.log"),
    ):
        pass
    command = [sys.executable, "-m", "snakemake", "--directory", str(disk), "--dry-run", "--", "tiny"]
    found = subprocess.run(
        [*command[:3], "--configfile", "tests/tiny.yaml", *command[3:]],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode and "cannot write to .snakemake: Read-only file system" in found.stdout + found.stderr
    assert "Traceback" not in found.stdout + found.stderr


def test_a_limit_of_the_size_of_files_is_one_line(tmp_path: Path) -> None:
    for each in (spec := SPECS["dense"]).upstream():
        for needed in [*each.upstream(), each]:
            if not (tmp_path / needed.manifest).exists():
                compute(needed, tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises((OSError, FreelunchError)) as caught:
            compute(spec, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "File too large" in str(foreseen(caught.value)) and not (tmp_path / spec.manifest).exists()


@pytest.mark.parametrize("number", [errno.EIO, errno.EPERM, errno.EDQUOT])
def test_broken_disks_and_quotas_are_one_line(number: int, tmp_path: Path) -> None:
    line = foreseen(OSError(number, os.strerror(number), str(tmp_path / "file")))
    assert line is not None and line.startswith(f"cannot use {tmp_path / 'file'}: {os.strerror(number)} (")
    assert foreseen(OSError(errno.ENOENT, "no such file")) is None
