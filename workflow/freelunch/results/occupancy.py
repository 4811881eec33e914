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

from freelunch.errors import FreelunchError
from freelunch.plan.spec import RESULTS, Spec

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
