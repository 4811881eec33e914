"""Result directories: damage is found and named, and nothing half-written is taken for a result."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from freelunch.engine.states import create, scratch
from freelunch.errors import FreelunchError
from freelunch.plan.config import ExecutionConfig, ModelConfig
from freelunch.plan.specs import CalibrationSpec, DataSpec, DenseSpec, ModelSpec
from freelunch.results.artifacts import Artifact, files_digest, read_json, replacing, write_json
from freelunch.results.stage import Stage

SOURCE = {"random": {"config": {"model_type": "llama"}}}
MODEL = ModelSpec(model="small", source=ModelConfig.model_validate(SOURCE))
OTHER = ModelSpec(model="small", source=ModelConfig.model_validate(SOURCE | {"dtype": "float32"}))


def stage_of(root: Path, spec: ModelSpec | DenseSpec = MODEL, code: str = "code") -> Stage:
    return Stage(spec, root, ExecutionConfig(), code)


def finished(root: Path, spec: ModelSpec = MODEL) -> Path:
    """A finished result of two files of the same size."""
    stage = stage_of(root, spec)
    for name, text in (("one.txt", "first"), ("deep/two.txt", "other")):
        with stage.writing(name) as path:
            path.write_text(text)
    stage.finish(note="kept")
    return stage.folder


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


def swap(folder: Path) -> None:
    one, two = folder / "one.txt", folder / "deep" / "two.txt"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def flip_a_bit(folder: Path) -> None:
    path = folder / "one.txt"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_whole_result_opens_and_gives_its_files(tmp_path):
    artifact = Artifact(finished(tmp_path), MODEL)
    assert artifact.files == ["deep/two.txt", "one.txt"]
    assert [artifact.file(name).read_text() for name in artifact.files] == ["other", "first"]
    assert artifact.manifest["note"] == "kept" and artifact.digest == artifact.manifest["digest"]


@pytest.mark.parametrize(
    ("damage", "names", "message"),
    [
        (lambda folder: os.truncate(folder / "one.txt", 3), ["one.txt"], "has 3 bytes, the manifest says 5"),
        (lambda folder: os.truncate(folder / "one.txt", 0), ["one.txt"], "has 0 bytes"),
        (flip_a_bit, ["one.txt"], "SHA-256 differs"),
        (swap, ["one.txt", "deep/two.txt"], "SHA-256 differs"),
        (lambda folder: (folder / "one.txt").unlink(), ["one.txt"], "is missing"),
    ],
    ids=["truncated", "emptied", "bit flipped", "swapped", "missing"],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, damage, names, message):
    folder = finished(tmp_path)
    damage(folder)
    artifact = Artifact(folder, MODEL)
    for name in names:
        with pytest.raises(FreelunchError) as caught:
            artifact.file(name)
        text = str(caught.value)
        assert text.startswith(f"{folder / name}: ") and message in text and f"delete {folder}" in text
        with pytest.raises(FreelunchError):  # a failed check does not count as checked
            artifact.file(name)
    for name in set(artifact.files) - set(names):
        artifact.file(name)


def test_a_file_the_manifest_does_not_list_is_refused(tmp_path):
    folder = finished(tmp_path)
    (folder / "stray.txt").write_text("x")
    with pytest.raises(FreelunchError, match=r"stray\.txt: the manifest beside it lists no such file"):
        Artifact(folder, MODEL).file("stray.txt")


def test_the_manifest_of_another_spec_is_refused(tmp_path):
    folder = finished(tmp_path)
    with pytest.raises(FreelunchError) as caught:
        Artifact(folder, OTHER)
    assert all(part in str(caught.value) for part in (str(folder / "manifest.json"), MODEL.key, OTHER.key))


@pytest.mark.parametrize("content", [b"", b'{"key": ', b"\xff\xfe", None], ids=["empty", "cut", "binary", "missing"])
def test_a_manifest_that_cannot_be_read_is_named(tmp_path, content):
    folder = finished(tmp_path)
    if content is None:
        (folder / "manifest.json").unlink()
    else:
        (folder / "manifest.json").write_bytes(content)
    with pytest.raises(FreelunchError) as caught:
        Artifact(folder, MODEL)
    assert f"cannot read {folder / 'manifest.json'}" in str(caught.value) and f"delete {folder}" in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "null", '"text"'])
def test_json_that_is_no_manifest_is_named(tmp_path, content):
    folder = finished(tmp_path)
    (folder / "manifest.json").write_text(content)
    with pytest.raises(FreelunchError, match=r"manifest\.json"):
        Artifact(folder, MODEL)


def test_the_digest_depends_on_names_and_contents_but_not_on_order():
    files = {"a": {"sha256": "1"}, "b": {"sha256": "2"}}
    assert files_digest(files) == files_digest(dict(reversed(files.items())))
    assert files_digest(files) != files_digest({"a": {"sha256": "2"}, "b": {"sha256": "1"}})
    assert files_digest(files) != files_digest({"a": {"sha256": "1"}})


# --- writing ---------------------------------------------------------------------------------------------------------


def test_a_file_appears_under_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as part:
        part.write_text("all of it")
        assert not path.exists() and part.parent == path.parent
    assert path.read_text() == "all of it" and files_in(tmp_path) == {"new/file.txt"}


@pytest.mark.parametrize("error", [ValueError("x"), FreelunchError("x"), OSError(errno.EBADF, "x")], ids=repr)
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(type(error)) as caught, replacing(path) as part:
        part.write_text("new, but only ha")
        raise error
    assert caught.value is error
    assert path.read_text() == "old" and files_in(tmp_path) == {"file.txt"}


def test_a_file_that_was_never_written_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "file.txt"):
        pass
    assert files_in(tmp_path) == set()


def test_a_file_is_on_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    happened = []
    sync, move = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (happened.append("sync"), sync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda *paths: (happened.append("rename"), move(*paths))[1])
    write_json(tmp_path / "a.json", 1)
    assert happened == ["sync", "rename"]


def full(*_arguments: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def assert_says_the_disk_is_full(error: FreelunchError, path: Path) -> None:
    text = str(error)
    assert text.startswith(f"cannot write {path}: No space left on device (") and text.endswith(" GiB free)")
    assert len(text.splitlines()) == 1 and error.__suppress_context__


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_is_one_line_with_the_free_space(tmp_path, monkeypatch, where):
    monkeypatch.setattr(os, where, full)
    with pytest.raises(FreelunchError) as caught:
        write_json(tmp_path / "a.json", {"a": 1})
    assert_says_the_disk_is_full(caught.value, tmp_path / "a.json")
    assert files_in(tmp_path) == set()


@pytest.mark.parametrize("code", [errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_other_reasons_a_disk_takes_nothing_are_one_line_too(tmp_path, code):
    with pytest.raises(FreelunchError) as caught, replacing(tmp_path / "file"):
        raise OSError(code, os.strerror(code))
    assert str(caught.value).startswith(f"cannot write {tmp_path / 'file'}: {os.strerror(code)} (")


def test_a_full_disk_that_safetensors_reports_is_recognised(tmp_path):
    with pytest.raises(FreelunchError) as caught, replacing(tmp_path / "file"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert_says_the_disk_is_full(caught.value, tmp_path / "file")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a small tmpfs here: {error}")
    try:
        yield folder
    finally:
        # lazily, since a test that failed may still hold a mapping
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=10)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(bytes(2**21)),
        lambda path: save_file({"a": torch.ones(2**19)}, path),
        lambda path: create(path, (2**19,), torch.float32),
    ],
    ids=["bytes", "safetensors", "mapped"],
)
def test_a_really_full_disk_is_one_line_and_leaves_nothing(small_disk, write):
    path = small_disk / "results" / "file"
    with pytest.raises(FreelunchError) as caught, replacing(path) as part:
        write(part)
    assert_says_the_disk_is_full(caught.value, path)
    assert files_in(small_disk) == set()
    write_json(small_disk / "small.json", 1)


def test_a_disk_too_small_for_scratch_room_is_one_line(small_disk):
    with pytest.raises(FreelunchError, match="No space left on device"):
        scratch(small_disk, (2**19,), torch.float32)


def test_a_disk_too_small_for_scratch_room_keeps_nothing(small_disk):
    with pytest.raises((OSError, FreelunchError)):
        scratch(small_disk, (2**19,), torch.float32)
    assert files_in(small_disk) == set()


def test_a_disk_that_became_read_only_is_one_line(small_disk):
    try:
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True, capture_output=True, timeout=10)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"cannot remount: {error}")
    with pytest.raises(FreelunchError, match="Read-only file system"):
        write_json(small_disk / "a.json", 1)


def test_json_is_written_the_same_whatever_the_order(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": [1.5, None]})
    write_json(tmp_path / "b.json", {"a": [1.5, None], "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert read_json(tmp_path / "a.json") == {"a": [1.5, None], "b": 1}


# --- stages ----------------------------------------------------------------------------------------------------------


def test_a_stage_removes_what_a_killed_one_was_writing(tmp_path):
    folder = tmp_path / MODEL.folder
    (folder / "deep").mkdir(parents=True)
    stale = [folder / ".one.txt.123.part", folder / "deep" / ".two.txt.123.part"]
    for path in stale:
        path.write_text("half")
    (folder / "hidden-000.safetensors").write_text("whole, but of no use to a stage that starts over")
    stage_of(tmp_path)
    assert files_in(folder) == set()


def test_a_stage_that_starts_again_is_not_done_any_more(tmp_path):
    folder = finished(tmp_path)
    stage_of(tmp_path)
    assert files_in(folder) == set()


def test_the_manifest_is_written_last(tmp_path):
    stage = stage_of(tmp_path)
    with stage.writing("one.txt") as path:
        path.write_text("first")
    with pytest.raises(ValueError, match="killed"), stage.writing("two.txt") as path:
        path.write_text("ha")
        raise ValueError("killed")
    assert files_in(stage.folder) == {"one.txt"}
    with pytest.raises(FreelunchError, match="cannot read"):
        Artifact(stage.folder, MODEL)


def test_a_disk_that_fills_up_at_the_manifest_leaves_no_result(tmp_path, monkeypatch):
    stage = stage_of(tmp_path)
    with stage.writing("one.txt") as path:
        path.write_text("first")
    (stage.folder / "record.json").write_text("{}")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FreelunchError, match=r"cannot write .*manifest\.json: No space left"):
        stage.finish()
    assert files_in(stage.folder) == {"one.txt", "record.json"}


def test_what_the_manifest_does_not_list_stays_until_the_end_and_then_goes(tmp_path):
    stage = stage_of(tmp_path)
    for stray in ("record.json", "empty/deeper/record.json", ".hidden"):
        (stage.folder / stray).parent.mkdir(parents=True, exist_ok=True)
        (stage.folder / stray).write_text("{}")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.txt").write_text("not ours")
    (stage.folder / "link").symlink_to(outside)
    with stage.writing("deep/one.txt") as path:
        path.write_text("first")
    assert files_in(stage.folder) >= {"record.json", "empty/deeper/record.json", ".hidden", "link", "deep/one.txt"}
    stage.finish()
    assert {path.name for path in stage.folder.rglob("*")} == {"deep", "one.txt", "manifest.json"}
    assert (outside / "precious.txt").read_text() == "not ours"


def test_the_manifest_says_what_was_run_and_what_came_out(tmp_path):
    manifest = read_json(finished(tmp_path) / "manifest.json")
    assert manifest["key"] == MODEL.key and manifest["spec"] == MODEL.model_dump(mode="json")
    assert manifest["code"] == "code" and manifest["note"] == "kept" and manifest["inputs"] == {}
    assert {"torch", "freelunch"} <= set(manifest["versions"])
    assert manifest["files"]["one.txt"]["bytes"] == 5
    json.dumps(manifest, allow_nan=False)


def test_a_stage_whose_input_is_not_done_does_not_start(tmp_path):
    data = DataSpec.model_validate({"data": "d", "source": {"path": "x", "splits": {"test": "t"}}})
    calibration = CalibrationSpec(
        model=MODEL, data=data, sequences=1, validation_sequences=1, length=2, sampling="packed", seed=0
    )
    spec = DenseSpec(calibration=calibration)
    finished(tmp_path)
    with pytest.raises(FreelunchError, match=rf"cannot read .*{calibration.name}.manifest\.json"):
        stage_of(tmp_path, spec)
    assert not (tmp_path / spec.folder).exists()


def test_the_signature_changes_with_code_spec_and_inputs(tmp_path):
    stages = [stage_of(tmp_path), stage_of(tmp_path, code="other"), stage_of(tmp_path, OTHER), stage_of(tmp_path)]
    stages[-1].inputs["results/models/x"] = "digest"
    assert len({stage.signature for stage in stages}) == 4
    assert stage_of(tmp_path).signature == stages[0].signature
