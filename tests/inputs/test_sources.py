"""Wheels and hub repositories: what is fetched is checked, and every failure is one line with a way out."""

from __future__ import annotations

import errno
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import errors as hub_errors

from freelunch.errors import FreelunchError
from freelunch.inputs.sources import copy_member, fetch_wheel, hub_error, snapshot, wheel_member, wheel_path
from freelunch.plan.config import Hub, Wheel
from freelunch.results.artifacts import checksum

HUB = Hub(id="someone/something", revision="0" * 40)


def make_wheel(folder: Path, members: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny_pack-1.0-py3-none-any.whl"
    info = "tiny_pack-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in members.items():
            wheel.writestr(name, content)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-pack\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def entry(path: Path, member: str = "tiny_pack/data.json", version: str = "1.0") -> Wheel:
    return Wheel(package="tiny-pack", version=version, sha256=checksum(path), member=member)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip looks at, with one wheel in it."""
    path = make_wheel(tmp_path / "index", {"tiny_pack/data.json": b"[1, 2]"})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    return path


def test_pip_fetches_a_wheel_and_leaves_nothing_else(index: Path, tmp_path: Path) -> None:
    target = wheel_path(tmp_path, entry(index))
    fetch_wheel(entry(index), target)
    assert target.read_bytes() == index.read_bytes()
    assert [path.name for path in target.parent.iterdir()] == [f"tiny-pack-1.0-{entry(index).sha256[:8]}.whl"]


def test_a_wheel_put_there_by_hand_needs_no_pip(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "by-hand.whl"
    target.write_bytes(index.read_bytes())
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("ran pip"))
    fetch_wheel(entry(index), target)


def test_a_wrong_checksum_names_both_and_leaves_no_file(index: Path, tmp_path: Path) -> None:
    wheel = entry(index).model_copy(update={"sha256": "f" * 64})
    with pytest.raises(FreelunchError, match=f"has SHA-256 {checksum(index)}, the config expects ffff"):
        fetch_wheel(wheel, tmp_path / "out" / "x.whl")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_version_the_index_lacks(index: Path, tmp_path: Path) -> None:
    with pytest.raises(FreelunchError, match=r"no wheel of this version .*tiny-pack==9\.9.* by hand") as caught:
        fetch_wheel(entry(index, version="9.9"), tmp_path / "x.whl")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            "WARNING: Retrying after connection broken by 'NewConnectionError(Name or service not known)'\n"
            "ERROR: Could not find a version that satisfies the requirement x==1 (from versions: none)\n"
            "ERROR: No matching distribution found for x==1\n",
            r"could not reach the package index \(No matching distribution",
        ),
        ("ERROR: Could not find a version (from versions: none)\nERROR: No matching distribution found\n", "no such"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n", "no space left"),
        ("ERROR: 403 for https://user:secret@index.example/simple\n", r"https://index\.example"),
        ("", "pip said nothing"),
    ],
)
def test_what_pip_says_becomes_one_line(
    output: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stdout=output))
    wheel = Wheel(package="x", version="1", sha256="0" * 64, member="m")
    with pytest.raises(FreelunchError, match=message) as caught:
        fetch_wheel(wheel, tmp_path / "x.whl")
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_an_environment_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(FreelunchError, match=r"has no pip; the wheel with SHA-256 0+ can also be put at"):
        fetch_wheel(Wheel(package="x", version="1", sha256="0" * 64, member="m"), tmp_path / "x.whl")


def test_a_member_is_read_and_copied(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, {"tiny_pack/data.json": b"[1, 2]"})
    with wheel_member(path, "tiny_pack/data.json", checksum(path)) as stream:
        assert stream.read() == b"[1, 2]"
    copy_member(path, entry(path), tmp_path / "deep" / "copy.json")
    assert (tmp_path / "deep" / "copy.json").read_bytes() == b"[1, 2]"


@pytest.mark.parametrize("member", ["../outside.json", "/etc/passwd", "a/../../b", "a\\b"])
def test_hostile_member_names_are_refused_and_never_written(member: str, tmp_path: Path) -> None:
    path = make_wheel(tmp_path / "w", {member: b"evil"})
    with pytest.raises(FreelunchError, match="is not the name of a wheel member"):
        copy_member(path, entry(path, member), tmp_path / "out")
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == [path.name]


def test_a_missing_member_suggests_one(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, {"tiny_pack/data_en.json": b"[]", "tiny_pack/code.py": b""})
    with (
        pytest.raises(FreelunchError, match=r"did you mean 'tiny_pack/data_en\.json'\?"),
        wheel_member(path, "tiny_pack/data_es.json", checksum(path)),
    ):
        pass


def test_a_missing_or_altered_wheel(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, {"tiny_pack/data.json": b"[]"})
    with pytest.raises(FreelunchError, match="the wheel is missing"), wheel_member(tmp_path / "no.whl", "x", "0"):
        pass
    expected = checksum(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FreelunchError, match=f"the config expects {expected}"), wheel_member(path, "x", expected):
        pass
    with pytest.raises(FreelunchError, match="cannot be read"), wheel_member(path, "x", checksum(path)):
        pass


def response(status: int) -> Any:
    return SimpleNamespace(status_code=status, headers={}, request=None, reason_phrase="")


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (hub_errors.GatedRepoError("403 Client Error", response=response(403)), "accept its licence.*HF_TOKEN"),
        (hub_errors.RepositoryNotFoundError("404", response=response(404)), "no such repository, or it is private"),
        (hub_errors.RevisionNotFoundError("404", response=response(404)), "no revision 0{40}"),
        (DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub."), "accept its licence.*HF_TOKEN"),
        (DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed."), "no such repository"),
        (DatasetNotFoundError("Revision '0' doesn't exist for dataset 'a/b' on the Hub."), "no revision 0{40}"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left.*HF_HOME"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space left.*HF_HOME"),
        (RuntimeError("Data processing error: IO Error: No space left on device (os error 28)"), "no space left"),
        (hub_errors.LocalEntryNotFoundError("Got: ConnectError: [Errno -2]"), "cannot be reached.*HF_HOME.*`path:`"),
        (ConnectionError("Couldn't reach 'a/b' on the Hub (LocalEntryNotFoundError)"), "cannot be reached"),
        (ConnectionError("Couldn't reach 'a/b' on the Hub (OfflineModeIsEnabled)"), "HF_HUB_OFFLINE is set"),
        (chained(FileNotFoundError("no"), hub_errors.OfflineModeIsEnabled("off")), "HF_HUB_OFFLINE is set"),
        (RuntimeError("Dataset scripts are no longer supported, but found c4.py"), "is a script, which is never run"),
        (ValueError("Unknown split \"tset\". Should be one of ['test'].\nmore"), "Should be one of"),
    ],
)
def test_every_hub_failure_is_one_line(error: Exception, message: str) -> None:
    line = hub_error(error, HUB)
    assert "\n" not in str(line)
    with pytest.raises(FreelunchError, match=f"someone/something@000000000000: .*{message}"):
        raise line


def test_offline_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FreelunchError, match="HF_HUB_OFFLINE is set and the cache lacks"):
        snapshot(HUB, ["*.json"])


def test_offline_with_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--someone--something" / "snapshots" / HUB.revision
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert snapshot(HUB, ["*.json"]) == folder
