"""Jobs side by side on one machine: each takes a GPU of its own, and gives it back when it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from freelunch.engine import accelerators
from freelunch.engine.accelerators import claim, take_one, visible

HOLD = """
import sys, time
from pathlib import Path
from freelunch.engine.accelerators import claim
print(claim(sys.argv[2:], Path(sys.argv[1])), flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def nothing_held() -> None:
    while accelerators._HELD:
        accelerators._HELD.pop().close()


def hold(locks: Path, *names: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, locks, *names], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_processes_take_different_ones_and_killed_ones_give_theirs_back(tmp_path: Path) -> None:
    held = [hold(tmp_path, "0", "1") for _ in range(3)]
    try:
        assert [name for _, name in held] == ["0", "1", "None"]
        held[0][0].send_signal(signal.SIGKILL)
        held[0][0].wait()
        assert claim(["0", "1"], tmp_path) == "0"
    finally:
        for process, _ in held:
            process.kill()
            process.wait()


def test_the_environment_counts_before_the_devices(tmp_path: Path) -> None:
    for device in ("nvidia0", "nvidia1", "nvidia7", "nvidiactl", "nvidia-uvm"):
        (tmp_path / device).touch()
    assert visible({}, tmp_path) == ["0", "1", "2"]
    for value, names in (("2, 5", ["2", "5"]), ("GPU-8c6d", ["GPU-8c6d"]), ("", [])):
        assert visible({"CUDA_VISIBLE_DEVICES": value}, tmp_path) == names


@pytest.mark.parametrize(("given", "seen"), [("4,7", ["4", "7", "4"]), ("4", ["4"] * 3), ("", [""] * 3)])
def test_a_job_sees_its_own_and_the_first_if_there_is_no_other(
    given: str, seen: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = []
    for _ in seen:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        take_one()
        found.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert found == seen
    assert ("other jobs have all 2 GPUs" in caplog.text) == (given == "4,7")
