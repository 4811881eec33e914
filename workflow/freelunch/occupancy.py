"""One process at a time makes a result: a stage that starts sweeps its folder, and would sweep away another's files.

Snakemake keeps other Snakemakes out of a directory, and the runner other runners. This is for all other pairs: the two
of them, and a job whose Snakemake was killed and started again while the job still runs. Locks are those of POSIX, on
one byte per result of one file: the system lifts them when a process dies, in whatever way, and clusters' file systems
pass them on from node to node. They are the process's, so that it may make a result twice.
"""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import IO

from .errors import FreelunchError
from .specs import RESULTS, Spec

FILE = ".stages.lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)
_files: dict[Path, IO[bytes]] = {}
"""Kept open: closing the file would lift all locks of the process."""


def occupy(root: Path, spec: Spec) -> None:
    """Keep other processes from making a spec's result, until :func:`vacate` or the end of this process.

    Where the file system has no locks it does nothing.

    Raises:
        FreelunchError: another process is making it.
        OSError: the results cannot be written to.
    """
    try:
        fcntl.lockf(_file(root), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(spec))
    except OSError as error:
        if error.errno in _TAKEN:
            raise FreelunchError(
                f"{root / spec.folder}: another process is making this result; wait until it is done, and start again"
            ) from None
        if error.errno not in _UNSUPPORTED:
            raise


def vacate(root: Path, spec: Spec) -> None:
    """Let other processes make it."""
    try:
        fcntl.lockf(_file(root), fcntl.LOCK_UN, 1, _place(spec))
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def _file(root: Path) -> IO[bytes]:
    path = root.resolve() / RESULTS / FILE
    if path not in _files or not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _files[path] = path.open("ab")
    return _files[path]


def _place(spec: Spec) -> int:
    return int(spec.key, 16)
