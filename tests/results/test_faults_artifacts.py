"""Results that are not what was written (truncated, a bit flipped, swapped, altered): every stage sees it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from freelunch.errors import FreelunchError
from freelunch.plan.spec import STAGES
from freelunch.results.artifacts import MANIFEST, SEAL, Artifact, sealed
from freelunch.stages.collect import rows_of
from one_of_each import SHARDED, SPECS, above
from stage_runs import run

Damage = Callable[[list[Path]], None]
READS = [(reader, read) for reader in STAGES for read in dict.fromkeys(each.stage for each in above(SPECS[reader]))]


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "results", tmp_path / "results", symlinks=True)
    return tmp_path


def truncate(files: list[Path]) -> None:
    for path in files:
        path.write_bytes(path.read_bytes()[:-1])


def flip(files: list[Path]) -> None:
    for path in files:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def swap(files: list[Path]) -> None:
    contents = [path.read_bytes() for path in files]
    for path, content in zip(files, [*contents[1:], contents[0] if len(contents) > 1 else b"another"], strict=True):
        path.write_bytes(content)


def remove(files: list[Path]) -> None:
    for path in files:
        path.unlink()


@pytest.mark.parametrize("damage", [truncate, flip, swap, remove], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize(("reader", "read"), READS)
def test_what_a_stage_reads_is_checked(
    reader: str, read: str, damage: Callable[[list[Path]], None], root: Path
) -> None:
    spec = SPECS[reader]
    folders = [root / each.folder for each in above(spec) if each.stage == read]
    damage(sorted(path for folder in folders for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST))
    shutil.rmtree(root / spec.folder)
    names = "|".join(re.escape(str(folder)) for folder in folders)
    with pytest.raises(FreelunchError, match=rf"^({names})/\S+: .*; delete ({names}) to have it made again$"):
        run(spec, root, SHARDED)
    assert not (root / spec.manifest).exists()


def digits(text: str) -> str:
    """A manifest in which the last of the digits that belong to a number is another."""
    at = [match.start() for match in re.finditer(r"\d(?=,\n)", text)][-1]
    return text[:at] + ("1" if text[at] != "1" else "2") + text[at + 1 :]


@pytest.mark.parametrize("stage", STAGES)
def test_a_manifest_that_was_altered_is_refused(stage: str, root: Path) -> None:
    spec = SPECS[stage]
    path = root / spec.manifest
    whole = path.read_text()
    for text in (digits(whole), whole.replace('"bytes": ', '"bytes": 1', 1), whole.replace("2026", "2062")):
        path.write_text(text)
        with pytest.raises(FreelunchError, match="was altered after it was written; delete"):
            Artifact(path.parent, spec)
    for text in (whole[:-3], whole[1:], whole.replace('"files"', '"flies"', 1), "", "null"):
        path.write_text(text)
        with pytest.raises(FreelunchError, match=re.escape(str(path))):
            Artifact(path.parent, spec)


def test_results_of_earlier_versions_which_have_no_seal_are_taken(root: Path) -> None:
    for path in root.rglob(MANIFEST):
        manifest = json.loads(path.read_text())
        del manifest[SEAL]
        path.write_text(json.dumps(manifest))
    for stage in ("reconstructed", "repaired", "exported"):
        shutil.rmtree(root / SPECS[stage].folder)
        run(SPECS[stage], root, SHARDED)


def test_numbers_of_an_altered_manifest_do_not_become_rows(root: Path) -> None:
    spec = SPECS["evaluation"]
    assert list(rows_of("tiny", spec, root))
    path = root / SPECS["reconstructed"].manifest
    path.write_text(digits(path.read_text()))
    with pytest.raises(FreelunchError, match="was altered"):
        list(rows_of("tiny", spec, root))


def test_a_seal_is_kept_by_what_json_does_to_a_manifest() -> None:
    manifest = sealed({"a": (1, 2), 3: 0.1, "none": None, "nan": float("nan"), "text": "ü"})
    assert sealed(json.loads(json.dumps(manifest)))[SEAL] == manifest[SEAL]


@pytest.mark.parametrize(("change", "trained"), [("nothing", 0), ("number", 1), ("earlier version", 0)])
def test_records_of_interrupted_windows_are_checked_too(change: str, trained: int, root: Path) -> None:
    spec = SPECS["reconstructed"]
    for each in above(spec):
        if each.stage == "shards":
            shutil.rmtree(root / each.folder)
    (root / spec.manifest).unlink()
    records = sorted((root / spec.folder).glob("window-*.json"))
    if change == "number":
        record = json.loads(records[0].read_text())
        records[0].write_text(json.dumps(record | {"best_loss": record["best_loss"] * 2}))
    if change == "earlier version":
        for path in records:
            path.write_text(json.dumps({key: its for key, its in json.loads(path.read_text()).items() if key != SEAL}))
    again = run(spec, root, SHARDED)
    assert again.manifest["resumed_windows"] == len(records) - trained
    assert all(SEAL not in window for window in again.manifest["windows"])


def test_a_file_list_that_leads_out_of_the_folder_is_no_manifest(tmp_path: Path) -> None:
    for name in ("../escaped", "/etc/passwd", "a/../../b"):
        entry = {"bytes": 1, "sha256": "0" * 64}
        (tmp_path / MANIFEST).write_text(json.dumps({"files": {name: entry}}))
        with pytest.raises(FreelunchError, match="is no manifest"):
            Artifact(tmp_path)


def test_every_stage_is_read_by_another_or_by_rows() -> None:
    # the evaluation here is that of a reconstruction; those of other networks open theirs by the same function
    last = {"evaluation", "exported", "retrained", "repaired", "sparse_classifiers"}
    assert {read for _, read in READS} == set(STAGES) - last
