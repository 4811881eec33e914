"""What all stages share: where upstream results are, where files go, and the manifest at the end."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import platform
import re
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from freelunch.engine.device import DTYPES, choose, deterministic, products
from freelunch.engine.overlays import SafetensorsFiles
from freelunch.errors import FreelunchError, first_line
from freelunch.plan.config import DenseConfig, ExecutionConfig
from freelunch.plan.spec import RESULTS, Spec
from freelunch.results.artifacts import (
    MANIFEST,
    Artifact,
    describe,
    files_digest,
    naming_disk_errors,
    replacing,
    sealed,
    write_json,
)
from freelunch.results.code import versions

if TYPE_CHECKING:
    from torch import Tensor

MAX_GIB: float = DenseConfig.model_fields["max_gib"].default
_ASKED = re.compile(r"Tried to allocate ([\d.]+ \w+)")
_ROOM = re.compile(r"total capacity of ([\d.]+ \w+)(?: of which ([\d.]+ \w+) is free)?")


class Stage:
    """One run of a stage: ``with stage.writing(name) as path`` for every file, then :meth:`finish`.

    Args:
        spec: what to compute.
        root: directory that holds ``results``.
        execution: device and batch sizes.
        code: hash of the source files the stage runs; a result of other code is not resumed.
        max_gib: of hidden states that a dense cache keeps.

    Raises:
        FreelunchError: an upstream result is missing or damaged, the folder cannot be written to, or another process
            is making the same result.
    """

    def __init__(self, spec: Spec, root: Path, execution: ExecutionConfig, code: str, max_gib: float = MAX_GIB) -> None:
        self.spec, self.root, self.execution, self.code, self.max_gib = spec, root, execution, code, max_gib
        self.folder = root / spec.folder
        self._opened: dict[str, Artifact] = {}
        self._files: dict[str, Any] = {}
        self.inputs = {str(up.folder): self.open(up).digest for up in spec.upstream()}
        self._started = time.perf_counter()
        with naming_disk_errors(self.folder):
            occupy(root, spec)
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / MANIFEST).unlink(missing_ok=True)
            self._tidy()

    def open(self, spec: Spec) -> Artifact:
        """A finished upstream result; its files are checked once per job."""
        if spec.manifest not in self._opened:
            self._opened[spec.manifest] = Artifact(self.root / spec.folder, spec)
        return self._opened[spec.manifest]

    def tensors(self, spec: Spec, prefix: str = "") -> SafetensorsFiles:
        """All tensors of an upstream result's safetensors files whose names start with ``prefix``."""
        artifact = self.open(spec)
        names = [name for name in artifact.files if name.endswith(".safetensors") and name.startswith(prefix)]
        return SafetensorsFiles(artifact.file(name) for name in names)

    @cached_property
    def signature(self) -> str:
        """Hash of everything the result's bits depend on. Partial results carry it."""
        import torch

        execution = self.execution
        machine = [
            choose(execution.device).type, torch.get_num_threads(), execution.stream_tokens, self.products,
            execution.deterministic, execution.compile,
        ]  # fmt: skip
        text = f"{self.spec.key} {sorted(self.inputs.items())} {self.code} {machine} {sorted(versions().items())}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def products(self) -> dict[str, str]:
        """What models of each dtype are computed in here."""
        device, wanted = choose(self.execution.device), self.execution.products
        return {name: str(products(dtype, device, wanted)).removeprefix("torch.") for name, dtype in DTYPES.items()}

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A path to write the file ``name`` to; it takes its place, and is noted in the manifest, when complete."""
        with replacing(self.folder / name) as part:
            yield part
        self.add(name)

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a safetensors file of the result."""
        from safetensors.torch import save_file

        with self.writing(name) as path:
            save_file({key: tensor.contiguous().cpu() for key, tensor in tensors.items()}, path)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the result."""
        write_json(self.folder / name, value)
        self.add(name)

    def add(self, name: str) -> None:
        """Note a file that is already in its place."""
        self._files[name] = describe(self.folder / name)

    def forget(self, name: str) -> None:
        """Take a file out of the result again; it goes when the stage is finished."""
        self._files.pop(name, None)

    def entry(self, name: str) -> dict[str, Any]:
        """Size and checksum of a file that was written or added."""
        found: dict[str, Any] = self._files[name]
        return found

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute as ``execution`` says, and abandon the stage if what is done inside fails.

        Raises:
            FreelunchError: the disk took something no more that has no name of its own, an accelerator's memory is
                full, or there is no deterministic algorithm for what was to be computed by one.
        """
        try:
            with deterministic(self.execution.deterministic):
                yield
        except BaseException as error:
            self.abandon()
            if out_of_memory(error):
                raise explained(self.spec, self.execution, error) from error
            if getattr(error, "filename", None):
                raise
            with naming_disk_errors(self.folder):
                raise

    def abandon(self) -> None:
        """Give up, and remove what no later attempt can use: temporary files, and all of a stage that starts over."""
        self._tidy()
        vacate(self.root, self.spec)

    def _tidy(self) -> None:
        if self.spec.resumed:
            for part in self.folder.rglob(".*.part"):
                part.unlink()
        else:
            self._files.clear()
            self._sweep()

    def finish(self, **results: Any) -> dict[str, Any]:
        """Write the manifest, which makes the result complete; then remove what it does not list."""
        manifest = {
            "stage": self.spec.stage,
            "key": self.spec.key,
            "spec": self.spec.model_dump(mode="json"),
            "inputs": self.inputs,
            "files": self._files,
            "digest": files_digest(self._files),
            "code": self.code,
            "versions": versions(),
            "execution": self.execution.model_dump(),
            "products": self.products,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - self._started, 3),
            **_machine(),
            **results,
        }
        write_json(self.folder / MANIFEST, sealed(manifest))
        self._sweep()
        vacate(self.root, self.spec)
        return manifest

    def _sweep(self) -> None:
        """Remove what is not part of the result."""
        kept = {self.folder / name for name in (*self._files, MANIFEST)}
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path not in kept:
                path.unlink()


def out_of_memory(error: BaseException) -> bool:
    """Whether a failure is an accelerator's memory that is full."""
    import torch

    # CUDA's libraries, which take memory of their own, have no exception for it
    library = isinstance(error, RuntimeError) and "_STATUS_ALLOC_FAILED" in str(error)
    return library or isinstance(error, torch.OutOfMemoryError)


def explained(spec: Spec, execution: ExecutionConfig, error: BaseException) -> FreelunchError:
    """The failure of a stage in a sentence: which stage, the sizes, and what to change."""
    asked, room = _ASKED.search(str(error)), _ROOM.search(str(error))
    said = first_line(error)
    if asked:
        said = f"the GPU's memory is full: {asked[1]} more were asked for"
        if room:
            said += f", of {room[1]}" + (f" {room[2]} are free" if room[2] else " in all")
    return FreelunchError(f"{spec.stage} {spec.name}: {said}; {spec.remedy(execution)}")


def processor() -> str:
    """Model of the CPU, where Linux tells it."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
            return next(names, platform.machine())
    except OSError:
        return platform.processor() or platform.machine()


def _machine() -> dict[str, Any]:
    """Device and peak memory, of the accelerator if torch runs on one."""
    import torch

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10
    machine: dict[str, Any] = {
        "device": processor(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "peak_gib": round(peak / 2**30, 3),
    }
    if torch.cuda.is_initialized():
        machine["device"] = torch.cuda.get_device_name()
        machine["peak_device_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
    return machine


# --- one process at a time -------------------------------------------------------------------------------------------
# A stage that starts sweeps its folder, and would sweep away another's files. Snakemake keeps other Snakemakes out of a
# directory, and the runner other runners; these locks are for all other pairs: the two of them, and a job whose
# Snakemake was killed and started again while the job still runs. They are POSIX locks on one byte per result of one
# file: the system lifts them when a process dies, and clusters' file systems pass them on from node to node. They are
# the process's, so that it may make a result twice.

FILE = ".stages.lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)
_held: dict[Path, tuple[IO[bytes], set[int]]] = {}
"""Open lock files, and the places that this process has locked in each; closing a file would lift all of them."""


def occupy(root: Path, spec: Spec) -> None:
    """Keep other processes from making a spec's result, until :func:`vacate` or the end of this process.

    Where the file system has no locks it does nothing.

    Raises:
        FreelunchError: another process is making it.
        OSError: the results cannot be written to.
    """
    path, place = _file(root), int(spec.key, 16)
    if path not in _held or not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _held[path] = path.open("ab"), set()
    file, places = _held[path]
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        places.add(place)
    except OSError as error:
        _close_unused(path)
        if error.errno in _TAKEN:
            raise FreelunchError(
                f"{root / spec.folder}: another process is making this result; wait until it is done, and start again"
            ) from None
        if error.errno not in _UNSUPPORTED:
            raise


def vacate(root: Path, spec: Spec) -> None:
    """Let other processes make it; nothing if it is not occupied."""
    path, place = _file(root), int(spec.key, 16)
    file, places = _held.get(path, (None, set()))
    if file is not None and place in places:
        fcntl.lockf(file, fcntl.LOCK_UN, 1, place)
        places.remove(place)
        _close_unused(path)


def _close_unused(path: Path) -> None:
    """Close a file in which nothing is locked, so that its file system can be unmounted."""
    file, places = _held[path]
    if not places:
        file.close()
        del _held[path]


def _file(root: Path) -> Path:
    return root.resolve() / RESULTS / FILE
