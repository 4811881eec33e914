"""A part of the tiny suite on a real Slurm of two nodes on this machine, with the project's profile."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from freelunch.plan.config import parse_config
from freelunch.plan.plan import make_plan
from freelunch.plan.yaml_files import read_yaml
from test_end_to_end import copy_repository

ROOT = Path(__file__).parents[1]
PLUGIN = ROOT / ".slurm"
"""Where `make slurm` puts the executor plugin: not beside Snakemake, whose every start would look for a Slurm."""
QUICK = [
    "--seconds-between-status-checks", "2", "--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "5",
    # without accounting there is a sacct that does not answer, and nothing to guess an account from
    "--slurm-status-command", "squeue", "--slurm-no-account",
]  # fmt: skip
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def slurm() -> Iterator[None]:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("starting Slurm takes root and Debian's packages")
    if not PLUGIN.is_dir():
        pytest.skip("the executor plugin is not in .slurm; make slurm puts it there")
    brought_up = subprocess.run([str(ROOT / "tests/slurm.sh"), "up"], capture_output=True, text=True, check=False)
    assert brought_up.returncode == 0, brought_up.stdout + brought_up.stderr
    yield
    subprocess.run([str(ROOT / "tests/slurm.sh"), "down"], check=True)


@pytest.fixture(scope="module")
def folder(slurm: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with three runs of the tiny suite: dense, pruned, reconstructed."""
    folder = copy_repository(tmp_path_factory.mktemp("cluster") / "repository")
    path = folder / "tests/tiny.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    suite = config["suites"]["tiny"]
    run = {"criterion": "wanda", "pattern": "50%", "window": "attention_mlp", "recovery": ["none", "reconstruct"]}
    suite["runs"] = [run]
    suite["figures"] = ["perplexity"]
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


def command(*arguments: str) -> list[str]:
    profile = ["--workflow-profile", "profiles/slurm", *QUICK]
    return [sys.executable, "-m", "snakemake", "--configfile", "tests/tiny.yaml", *profile, *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(PLUGIN), "SLURM_CONF": "/etc/slurm/slurm.conf"}


def snakemake(folder: Path, *arguments: str) -> str:
    """Run Snakemake on the cluster; what it said."""
    found = subprocess.run(
        command(*arguments), cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    text = found.stdout + found.stderr
    assert found.returncode == 0, text[-6000:]
    return text


def submitted(text: str, rule: str) -> list[dict[str, str]]:
    """What Slurm knows of the jobs of a rule that a run submitted, in order."""
    name = re.compile(rf"Job \d+ has been submitted with SLURM jobid (\d+) .*?log: [^)]*/rule_{rule}/", re.DOTALL)
    found = []
    for line in text.splitlines():
        match = name.search(line)
        if match:
            told = subprocess.run(["scontrol", "show", "job", match[1]], capture_output=True, text=True, check=True)
            found.append(dict(pair.split("=", 1) for pair in told.stdout.split() if "=" in pair))
    return found


def resumed(folder: Path) -> int:
    """Windows that the reconstruction that was finished last had from before."""
    newest = max((folder / "results/reconstructed").glob("*/manifest.json"), key=lambda path: path.stat().st_mtime)
    return int(yaml.safe_load(newest.read_text(encoding="utf-8"))["resumed_windows"])


def train_for(epochs: int, folder: Path) -> None:
    """Under another key than for another number of epochs."""
    path = folder / "tests/tiny.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["suites"]["tiny"]["defaults"]["epochs"] = epochs
    path.write_text(yaml.safe_dump(config), encoding="utf-8")


def test_the_suite_runs_on_the_cluster_and_then_has_nothing_to_do(folder: Path) -> None:
    text = snakemake(folder, "--", "tiny")
    assert (folder / "results/tiny/report.html").is_file()
    (reconstruct,) = submitted(text, "reconstructed")
    assert reconstruct["JobState"] == "COMPLETED" and reconstruct["NumNodes"] == "1"
    assert reconstruct["TresPerJob"] == "gres:gpu:1"
    assert int(re.sub(r"\D", "", reconstruct["MinMemoryNode"])) > 700  # MB: a process with torch, and the model
    (fetched,) = submitted(text, "data")
    assert "TresPerJob" not in fetched
    assert "Nothing to be done" in snakemake(folder, "--", "tiny")


def test_a_job_that_was_given_too_little_memory_gets_more(folder: Path) -> None:
    shutil.rmtree(folder / "results/dense", ignore_errors=True)
    plan = make_plan(parse_config(read_yaml(folder / "tests/tiny.yaml")))
    (dense,) = plan.stage("dense").values()
    text = snakemake(folder, "--set-resources", "dense:mem_mb=150*attempt**4", "--", dense.manifest)
    first, *_, last = submitted(text, "dense")
    assert first["JobState"] in ("OUT_OF_MEMORY", "FAILED", "CANCELLED") and last["JobState"] == "COMPLETED"
    assert first["MinMemoryNode"] == "150M" and last["MinMemoryNode"] != "150M"


def test_a_job_that_ran_out_of_time_goes_on_after_its_last_window(folder: Path) -> None:
    train_for(400, folder)  # minutes, in eight windows
    text = snakemake(folder, "--set-resources", "reconstructed:runtime=1+20*(attempt-1)", "--until", "reconstructed",
                     "--", "tiny")  # fmt: skip
    first, last = submitted(text, "reconstructed")
    assert (first["JobState"], last["JobState"]) == ("TIMEOUT", "COMPLETED")
    assert resumed(folder) >= 1


# --- a Snakemake that ends while its jobs run ------------------------------------------------------------------------


def jobs() -> list[str]:
    """Numbers of the jobs that Slurm runs or is about to."""
    told = subprocess.run(["squeue", "--noheader", "--format=%i"], capture_output=True, text=True, check=True)
    return told.stdout.split()


def wait(until: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, f"waited for {seconds} s"
        time.sleep(0.5)


@contextmanager
def interrupted(folder: Path, how: signal.Signals, epochs: int) -> Iterator[None]:
    """Start a long reconstruction and end its Snakemake when the first window is done."""
    train_for(epochs, folder)
    windows = set((folder / "results/reconstructed").glob("*/window-*.json"))
    running = subprocess.Popen(
        command("--until", "reconstructed", "--", "tiny"), cwd=folder, env=environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait(lambda: set((folder / "results/reconstructed").glob("*/window-*.json")) - windows, 300)
        assert jobs() and running.poll() is None
        running.send_signal(how)
        running.wait(120)
        yield
    finally:
        running.kill()
        for job in jobs():
            subprocess.run(["scancel", job], check=True)
        wait(lambda: not jobs(), 60)


def test_a_cancelled_snakemake_cancels_its_jobs_and_the_next_one_goes_on(folder: Path) -> None:
    with interrupted(folder, signal.SIGINT, 401):
        wait(lambda: not jobs(), 60)
    snakemake(folder, "--until", "reconstructed", "--", "tiny")
    assert resumed(folder) >= 1


def test_jobs_of_a_killed_snakemake_go_on_and_keep_others_out_until_they_are_cancelled(folder: Path) -> None:
    with interrupted(folder, signal.SIGKILL, 402):
        assert jobs()
        snakemake(folder, "--unlock", "--", "tiny")
        second = subprocess.run(
            command("--retries", "0", "--until", "reconstructed", "--", "tiny"), cwd=folder, env=environment(),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        log = max((folder / "results/logs/reconstructed").glob("*.log"), key=lambda path: path.stat().st_mtime)
        assert second.returncode and "another process" in log.read_text(encoding="utf-8", errors="replace")
    # the first job was cancelled here, or was done before
    snakemake(folder, "--until", "reconstructed", "--", "tiny")
