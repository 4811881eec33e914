"""Files that are not what they say: safetensors, zip, GGUF, JSON and Parquet made to harm whoever reads them."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from freelunch.engine.overlays import SafetensorsFiles
from freelunch.engine.states import load
from freelunch.errors import FreelunchError
from freelunch.inputs.documents import read_records
from freelunch.inputs.models import model_from_gguf, parameter_count
from freelunch.inputs.sources import copy_member, wheel_member
from freelunch.plan.config import Wheel
from freelunch.results.artifacts import checksum


def tensors(header: Any, data: bytes = b"\0" * 64, length: int | None = None) -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: Any = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HEADERS = {
    "nothing": b"",
    "a header of 2**63 bytes": tensors({}, length=2**63),
    "a header longer than the file": tensors({}, length=10_000),
    "no JSON": tensors(b"{" * 50),
    "deep JSON": tensors(b"[" * 100_000),
    "a list": tensors([]),
    "overlapping offsets": tensors({"a": entry(), "b": entry(offsets=[8, 24])}),
    "offsets behind the file": tensors({"a": entry(shape=[1000], offsets=[0, 4000])}),
    "offsets that run backwards": tensors({"a": entry(offsets=[16, 0])}),
    "a negative offset": tensors({"a": entry(offsets=[-16, 0])}),
    "a hole": tensors({"a": entry(), "b": entry(offsets=[32, 48])}),
    "a dtype that is none": tensors({"a": entry("F33")}),
    "a dtype of another width": tensors({"a": entry("F64")}),
    "a shape of another size": tensors({"a": entry(shape=[5])}),
    "a shape that overflows": tensors({"a": entry(shape=[2**32, 2**32])}),
    "a shape of text": tensors({"a": entry(shape=["4"])}),
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS.keys())
def test_safetensors_with_a_hostile_header_are_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    readers: list[Callable[[], object]] = [
        lambda: SafetensorsFiles([path]), lambda: parameter_count([path]), lambda: load(path),
    ]  # fmt: skip
    for read in readers:
        with pytest.raises(FreelunchError, match=str(path)):
            read()


def wheel(folder: Path, content: bytes) -> tuple[Path, Wheel]:
    path = folder / "x-1.0-py3-none-any.whl"
    path.write_bytes(content)
    return path, Wheel(package="x", version="1.0", sha256=checksum(path), member="x/data.json")


def zipped(folder: Path, data: bytes, **names: bytes) -> bytes:
    path = folder / "made.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.json", data)
        for name, its in names.items():
            archive.writestr(name, its)
    return path.read_bytes()


def test_members_that_would_escape_are_never_written(tmp_path: Path) -> None:
    hostile = {"../../escaped": b"x", "/escaped": b"x", "x/../../escaped": b"x"}
    path, pin = wheel(tmp_path, zipped(tmp_path, b"[]", **hostile))
    copy_member(path, pin, tmp_path / "deep" / "er" / "data.json")
    assert not list(tmp_path.rglob("escaped")) and not Path("/escaped").exists()


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path, pin = wheel(tmp_path, zipped(tmp_path, bytes(300 * 2**20)))
    with pytest.raises(FreelunchError, match=r"unpacks from [\d,]+ bytes to 314,572,800; refused"):
        copy_member(path, pin, tmp_path / "data.json")
    assert not (tmp_path / "data.json").exists()


def _lies(raw: bytes) -> bytes:
    """The size that the directory of the archive has for its member is far too small."""
    at = raw.index(b"PK\x01\x02")
    return raw[: at + 24] + struct.pack("<I", 4) + raw[at + 28 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda raw: raw[: len(raw) // 2],
    "a flipped bit in the member": lambda raw: raw[:60] + bytes([raw[60] ^ 4]) + raw[61:],
    "a password": lambda raw: _flag(raw, 1),
    "a method that nobody has": lambda raw: raw.replace(b"\x08\x00", b"\x77\x00"),
    "a directory that lies about the size": _lies,
    "no zip": lambda raw: b"PK" + bytes(100),
}


def _flag(raw: bytes, flag: int) -> bytes:
    central = raw.index(b"PK\x01\x02")
    changed = bytearray(raw)
    changed[6] |= flag
    changed[central + 8] |= flag
    return bytes(changed)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_wheels_are_one_line(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    content = json.dumps([{"text": f"text {number}"} for number in range(100)]).encode()
    path, pin = wheel(tmp_path, damage(zipped(tmp_path, content)))
    with pytest.raises(FreelunchError, match=str(path)), wheel_member(path, pin.member, pin.sha256) as stream:
        list(read_records(stream, str(path)))


@pytest.mark.parametrize(
    "content",
    [b"", b"GGUF", b"GGUF" + b"\xff" * 500, b"GGUF\x03\0\0\0" + struct.pack("<QQ", 2**60, 2**60), b"x" * 99],
    ids=["empty", "magic", "ones", "huge counts", "text"],
)
def test_a_gguf_of_garbage_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(FreelunchError, match=r"^model\.gguf: cannot be converted: .") as caught:
        model_from_gguf(path, torch.float32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.json", b"[" * 100_000),
        ("x.jsonl", b'{"text": ' * 100_000),
        ("x.json", b'{"text": ' + b"9" * 5000 + b"}"),
        ("x.jsonl", b'{"text": "a"}\n' + b"[" * 100_000),
        ("x.json.gz", b"\x1f\x8b" + bytes(30)),
        ("x.parquet", b"PAR1" + bytes(40) + b"PAR1"),
    ],
    ids=["deep", "deep-lines", "digits", "deep-second-line", "gzip", "parquet"],
)
def test_records_that_are_made_to_harm_are_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FreelunchError, match=name), path.open("rb") as stream:
        list(read_records(stream, name))


def test_a_file_with_two_of_a_tensor_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"weight": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(FreelunchError, match=r"holds weight, which .*a\.safetensors holds as well"):
        SafetensorsFiles([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])
