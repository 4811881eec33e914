"""Result directories: files written atomically, checked by SHA-256, and described by a manifest written last.

A directory is complete exactly when its ``manifest.json`` is there. Nothing half-written is ever taken for a result:
a file appears under its name only after its bytes are on disk.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from freelunch.errors import FreelunchError
from freelunch.plan.spec import Spec

MANIFEST = "manifest.json"
SEAL = "seal"
"""Key of the checksum of a manifest or record itself; those of earlier versions have none."""
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success its file replaces ``path``, on failure it is removed.

    Raises:
        FreelunchError: the disk is full or not writable; says where and how much is free.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with naming_disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            with part.open("rb+") as stream:
                os.fsync(stream.fileno())
            part.replace(path)
        except Exception:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        FreelunchError: the file is missing or truncated.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FreelunchError(f"cannot read {path}: {error}; delete {path.parent} to have it made again") from None


def check_writable(folder: Path) -> None:
    """Try whether files can be made in a folder, and make it if it is missing.

    Raises:
        FreelunchError: they cannot; says why and what to do.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FreelunchError(f"cannot write to {folder}: {error.strerror}; free it or change its owner") from None


@contextmanager
def naming_disk_errors(path: Path) -> Iterator[None]:
    """Make one line of a disk that takes nothing.

    Raises:
        FreelunchError: says that ``path`` could not be written, why, and how much is free.
    """
    try:
        yield
    except Exception as error:
        if not is_disk_error(error):
            raise
        raise FreelunchError(f"cannot write {path}: {disk_state(path.parent, error)}") from None


def is_disk_error(error: Exception) -> bool:
    """Whether a write failed for want of room or of permission, or because the disk is broken."""
    if isinstance(error, FreelunchError):
        return False  # it is a line already
    # safetensors reports a full disk as its own exception with the text of the I/O error in it
    known = isinstance(error, OSError) and error.errno in _DISK
    return known or "No space left" in str(error) or "os error 28" in str(error)


def disk_state(folder: Path, error: Exception) -> str:
    """Why a write below ``folder`` failed, and how much room is left there."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    reason = error.strerror if isinstance(error, OSError) else "No space left on device"
    return f"{reason} ({free:.2f} GiB free)"


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest or record with the checksum of all else in it: its numbers become rows, and nothing else has one."""
    # what a reader gets: keys are text, tuples are lists
    plain: dict[str, Any] = json.loads(json.dumps({key: its for key, its in record.items() if key != SEAL}))
    return plain | {SEAL: hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()}


def is_altered(record: Mapping[str, Any]) -> bool:
    """Whether a sealed record is not what was written."""
    return SEAL in record and sealed(record)[SEAL] != record[SEAL]


class Artifact:
    """A finished result directory.

    Raises:
        FreelunchError: on opening, if the manifest is missing, unreadable, altered, or belongs to another spec.
    """

    def __init__(self, folder: Path, spec: Spec | None = None) -> None:
        self.folder = folder
        manifest = read_json(folder / MANIFEST)
        repair = f"delete {folder} to have it made again"
        if not _is_manifest(manifest):
            raise FreelunchError(f"{folder / MANIFEST}: is no manifest; {repair}")
        self.manifest: dict[str, Any] = manifest
        found = manifest.get("key")
        if spec is not None and found != spec.key:
            raise FreelunchError(f"{folder / MANIFEST}: is the manifest of key {found}, not of {spec.key}; {repair}")
        if is_altered(manifest):
            raise FreelunchError(f"{folder / MANIFEST}: was altered after it was written; {repair}")
        self._checked: set[str] = set()

    @property
    def files(self) -> list[str]:
        return sorted(self.manifest["files"])

    @property
    def digest(self) -> str:
        """Hash over the checksums of all files: equal digests, equal contents."""
        return files_digest(self.manifest["files"])

    def file(self, name: str) -> Path:
        """Path of a file whose size and checksum were compared with the manifest (once per process).

        Raises:
            FreelunchError: the file is missing, truncated, or not the one that was written.
        """
        path = self.folder / name
        if name in self._checked:
            return path
        wanted = self.manifest["files"].get(name)
        if wanted is None:
            raise FreelunchError(f"{path}: the manifest beside it lists no such file")
        repair = f"delete {self.folder} to have it made again"
        if not path.is_file():
            raise FreelunchError(f"{path}: is missing; {repair}")
        size = path.stat().st_size
        if size != wanted["bytes"]:
            raise FreelunchError(f"{path}: has {size} bytes, the manifest says {wanted['bytes']}; {repair}")
        if checksum(path) != wanted["sha256"]:
            raise FreelunchError(f"{path}: its contents are not what the manifest says (SHA-256 differs); {repair}")
        self._checked.add(name)
        return path


def _is_manifest(raw: Any) -> bool:
    """Whether files are listed in it as they should be, each by a path that stays in the folder."""
    files = raw.get("files") if isinstance(raw, dict) else None
    return isinstance(files, dict) and all(
        isinstance(entry, dict)
        and isinstance(entry.get("bytes"), int)
        and isinstance(entry.get("sha256"), str)
        and not Path(name).is_absolute()
        and ".." not in Path(name).parts
        for name, entry in files.items()
    )


def describe(path: Path) -> dict[str, Any]:
    """The manifest's entry of a file: size and checksum."""
    return {"bytes": path.stat().st_size, "sha256": checksum(path)}


def files_digest(files: dict[str, Any]) -> str:
    """Hash over the names and checksums of a manifest's files."""
    lines = [f"{name} {entry['sha256']}" for name, entry in sorted(files.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
