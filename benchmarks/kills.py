"""``python -m benchmarks.kills``: kill a pipeline at random moments, start it again, and compare every bit.

A suite is run once without a break, which gives the reference and the time it takes. Then it is run from nothing, its
whole process group is killed (SIGKILL) after a random time, and it is started again, to its end or to its next kill.
After every kill what is finished is compared with the reference, at the end of every run everything that was computed.
A line says what each kill hit; the exit status is 1 if a bit is different. With ``--one-process`` the suite is run
without Snakemake, which starts a process per job: far more of the moments are then those of a stage at work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from freelunch.errors import FreelunchError
from freelunch.plan.config import parse_config
from freelunch.plan.plan import make_plan
from freelunch.plan.spec import RESULTS, STAGES
from freelunch.plan.yaml_files import read_yaml
from freelunch.results.artifacts import MANIFEST, SEAL, checksum, read_json
from freelunch.runner import Runner

PROJECT = Path(__file__).parents[1]
PARTS = ("Snakefile", "config.yaml", "benchmarks", "workflow", "profiles", "envs", "tests")
"""What of the repository a pipeline needs, that of the tests included."""
Contents = dict[str, str]
"""Checksums of files by their path."""
_VARY = frozenset({
    "digest", "files", "finished", "inputs", "peak_gib", "pruning_seconds", "resumed_at", "resumed_windows", "seconds",
    "train_seconds", SEAL,
})  # fmt: skip
"""Keys of manifests and records for times, memory, and checksums of what holds these."""


class Pipeline:
    """A suite that is run in a copy of the repository, on the CPU, where the same work gives the same bits.

    Args:
        folder: for the copy; made if it is not there.
        config: path of the configuration file within the repository.
        suite: its name.
        one_process: whether to run it without Snakemake.
    """

    def __init__(self, folder: Path, config: str, suite: str, one_process: bool = False) -> None:
        self.folder, self._config, self._suite, self._one_process = folder, config, suite, one_process
        folder.mkdir(parents=True, exist_ok=True)
        for part in PARTS:
            if (PROJECT / part).is_dir():
                skip = shutil.ignore_patterns("__pycache__")
                shutil.copytree(PROJECT / part, folder / part, ignore=skip, dirs_exist_ok=True)
            else:
                shutil.copy(PROJECT / part, folder / part)

    def forget(self) -> None:
        """Delete all results, and what Snakemake remembers of them."""
        for name in (RESULTS, ".snakemake"):
            if (self.folder / name).exists():
                shutil.rmtree(self.folder / name)

    def run(self) -> None:
        """Run it to its end, on what is there.

        Raises:
            FreelunchError: it fails; with the end of what it said.
        """
        self._unlock()
        self._call()

    def kill_after(self, seconds: float) -> bool:
        """Start it, and kill all its processes after so many seconds; False if it ended before."""
        self._unlock()
        process = subprocess.Popen(
            self._command(), cwd=self.folder, env=self._environment, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            while _alive(process.pid):
                time.sleep(0.01)
            return True
        if status:
            raise FreelunchError(f"the pipeline failed before it was killed; see {self.folder / RESULTS / 'logs'}")
        return False

    def finished(self) -> list[Path]:
        """Folders of the results that are complete."""
        return [folder for folder in self._folders() if (folder / MANIFEST).exists()]

    def windows(self) -> int:
        """Records of windows in results that are not complete."""
        unfinished = [folder for folder in self._folders() if not (folder / MANIFEST).exists()]
        return sum(len(list(folder.glob("window-*.json"))) for folder in unfinished)

    def contents(self) -> Contents:
        """What was computed and is complete; of manifests and records what does not vary from run to run."""
        found = {}
        for folder in self.finished():
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    varies = path.name == MANIFEST or path.match("window-*.json")
                    found[str(path.relative_to(self.folder))] = _steady(path) if varies else checksum(path)
        return found

    def _folders(self) -> Iterator[Path]:
        for stage in STAGES:
            yield from sorted((self.folder / RESULTS / stage).glob("*/"))

    def _unlock(self) -> None:
        """Lift the lock that a killed run left, as a user does."""
        if any((self.folder / ".snakemake" / "locks").glob("*")):
            self._call("--unlock")

    def _call(self, *arguments: str) -> None:
        run = subprocess.run(
            self._command(*arguments), cwd=self.folder, env=self._environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if run.returncode:
            raise FreelunchError(f"the pipeline failed:\n{(run.stdout + run.stderr)[-4000:]}")

    @property
    def _environment(self) -> dict[str, str]:
        """With the package of the copy, which no edit changes while it runs."""
        return os.environ | {"PYTHONPATH": os.pathsep.join([str(self.folder), str(self.folder / "workflow")])}

    def _command(self, *arguments: str) -> list[str]:
        if self._one_process:
            code = f"from benchmarks.kills import run_suite; run_suite({self._config!r}, {self._suite!r})"
            return [sys.executable, "-c", code]
        options = ["--configfile", self._config, "--config", "execution={device: cpu}", *arguments]
        return [sys.executable, "-m", "snakemake", *options, "--", self._suite]


def run_suite(config: str, suite: str) -> None:
    """Run a suite in this process and directory, without Snakemake, on the CPU."""
    plan = make_plan(parse_config(read_yaml(Path(config)) | {"execution": {"device": "cpu"}}))
    runner = Runner.of(plan.config, Path())
    for run in plan.runs[suite]:
        runner.need(run.evaluation)


def _steady(path: Path) -> str:
    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: kept(its) for key, its in value.items() if key not in _VARY}
        return [kept(its) for its in value] if isinstance(value, list) else value

    return hashlib.sha256(json.dumps(kept(read_json(path)), sort_keys=True).encode()).hexdigest()


def different(found: Contents, reference: Contents) -> list[str]:
    """Files that the reference lacks or has otherwise."""
    return sorted(name for name, digest in found.items() if reference.get(name) != digest)


def kills(pipeline: Pipeline, reference: Contents, whole: float, count: int, each: int, seed: int) -> Iterator[str]:
    """Kill ``count`` times and say what happened.

    Args:
        pipeline: to run; its results are deleted.
        reference: what it computes without a break.
        whole: seconds which that takes.
        count: of kills, of a process group that was alive.
        each: kills of a run before it is let to its end.
        seed: of the moments.

    Raises:
        FreelunchError: a bit is different, or the pipeline fails.
    """
    generator = random.Random(seed)
    # the halves of their sum reach the end of the suite
    longest = whole * min(1.0, 2 / each)
    number = 0
    while number < count:
        pipeline.forget()
        for _ in range(min(each, count - number)):
            moment = longest * generator.random()
            if not pipeline.kill_after(moment):
                break
            number += 1
            hit = f"{len(pipeline.finished()):3} results finished, {pipeline.windows():2} windows of others"
            _same(pipeline.contents(), reference, f"kill {number}")
            yield f"kill {number:3} after {moment:6.1f} s: {hit}"
        pipeline.run()
        found = pipeline.contents()
        _same(found, reference, f"the run with kill {number}")
        _same(reference, found, f"the run with kill {number}")
        yield f"run to its end: {len(found)} files, same bits"


def _same(found: Contents, reference: Contents, when: str) -> None:
    if wrong := different(found, reference):
        raise FreelunchError(f"{when}: {len(wrong)} files are not those of the run without a break: {wrong[:5]}")


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def main(arguments: list[str] | None = None) -> int:
    """Kill a suite as often as was asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.kills", description=__doc__.split(": ", 1)[1])
    parser.add_argument("--count", type=int, default=50, help="how often (default: %(default)s)")
    parser.add_argument("--each", type=int, default=1, help="kills before a run is let to its end (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--config", default="tests/tiny.yaml", help="within the repository (default: %(default)s)")
    parser.add_argument("--suite", default="tiny", help="of that config (default: %(default)s)")
    parser.add_argument("--one-process", action="store_true", help="run the suite without Snakemake")
    options = parser.parse_args(arguments)
    if options.count < 1 or options.each < 1:
        parser.error("--count and --each must be 1 or more")
    with tempfile.TemporaryDirectory(prefix="freelunch-kills-") as folder:
        pipeline = Pipeline(Path(folder), options.config, options.suite, options.one_process)
        started = time.perf_counter()
        try:
            pipeline.run()
            whole = time.perf_counter() - started
            reference = pipeline.contents()
            print(f"without a break: {whole:.1f} s, {len(reference)} files", flush=True)
            for line in kills(pipeline, reference, whole, options.count, options.each, options.seed):
                print(line, flush=True)
        except FreelunchError as error:
            print(error, file=sys.stderr)
            return 1
    print(f"{options.count} kills, and no bit is different")
    return 0


if __name__ == "__main__":
    sys.exit(main())
