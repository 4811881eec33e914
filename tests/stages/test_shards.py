"""Windows trained by several jobs, or by one that was killed: the same bits as by one job that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import stage_runs
from freelunch.errors import FreelunchError
from freelunch.plan.config import ExecutionConfig
from freelunch.plan.plan import Plan
from freelunch.plan.spec import Spec, parse_spec
from freelunch.plan.specs import ReconstructedSpec, ShardSpec
from freelunch.results.artifacts import SEAL, Artifact, checksum
from freelunch.stages import reconstructed as module
from stage_runs import prepare, subjects, tiny_config, tiny_plan

ROOT = Path(__file__).parents[2]
BLOCKS = 3
FLOWS = ["sparse_local", "sparse_dense"]
RUNS: list[dict[str, Any]] = [
    {"window": ["attention_mlp", "block", 2, "matrix"]},
    {"window": ["attention_mlp", "matrix"], "flow": FLOWS},
    {"window": 2, "flow": "sparse_dense"},
    {"window": "matrix", "flow": "official_matrix"},
    {"window": ["attention_mlp", 2], "prune_inputs": "recovered"},
    {"window": "attention_mlp", "prune_inputs": "recovered", "flow": "sparse_local"},
]
Result = tuple[dict[str, str], list[dict[str, Any]]]


def make() -> Plan:
    raw = tiny_config()
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": BLOCKS}
    raw["models"]["tiny"]["random"]["config"] |= small
    raw["suites"]["tiny"]["defaults"] |= {"sequences": 5, "validation_sequences": 2, "length": 24, "batch_size": 2}
    raw["suites"]["tiny"]["runs"] = [{"criterion": "wanda", "pattern": "50%"} | each for each in RUNS]
    return tiny_plan(raw)


PLAN = make()


def find(window: Any, flow: str = "dense", prune_inputs: str = "dense") -> ReconstructedSpec:
    wanted = (window, flow, prune_inputs)
    return next(
        subject
        for subject in subjects(PLAN)
        if isinstance(subject, ReconstructedSpec)
        and (subject.window, subject.flow, subject.pruned.prune_inputs) == wanted
    )


def run(spec: Spec, root: Path, shards: int = 1, code: str = "code") -> Artifact:
    return stage_runs.run(spec, root, ExecutionConfig(device="cpu", stream_tokens=48, shards=shards), code)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything up to the pruned model."""
    root = tmp_path_factory.mktemp("prepared")
    prepare(find("block"), root, ExecutionConfig(device="cpu", stream_tokens=48), max_gib=4e-5)  # not every boundary
    manifest = Artifact(root / find("block").dense.folder, find("block").dense).manifest
    assert 2 <= len(manifest["boundaries"]) < BLOCKS + 1
    return root


def beside(prepared: Path, root: Path) -> Path:
    """A place with everything up to the pruned model."""
    (root / "results").mkdir(parents=True)
    for folder in (prepared / "results").iterdir():
        if folder.name not in ("shards", "reconstructed"):
            (root / "results" / folder.name).symlink_to(folder)
    return root


@pytest.fixture
def root(prepared: Path, tmp_path: Path) -> Path:
    return beside(prepared, tmp_path / "run")


@pytest.fixture(scope="module")
def whole(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[ReconstructedSpec], Result]:
    """What one job gives that is left alone."""
    root, found = beside(prepared, tmp_path_factory.mktemp("whole") / "run"), {}

    def of(spec: ReconstructedSpec) -> Result:
        if spec.key not in found:
            found[spec.key] = result(run(spec, root))
            losses = [record["losses"] for record in found[spec.key][1]]
            assert all(min(each) < each[0] for each in losses), "nothing was learnt, and everything is alike"
        return found[spec.key]

    return of


def result(artifact: Artifact) -> Result:
    """Checksums of all tensors, and all records without what differs from run to run."""
    files = {name: checksum(artifact.file(name)) for name in artifact.files if name.endswith(".safetensors")}
    records = [json.loads(artifact.file(name).read_text()) for name in sorted(artifact.files) if ".json" in name]
    assert sum(name.startswith("window-") for name in files) == len(records) == len(artifact.manifest["windows"])
    left = {path.name for path in artifact.folder.iterdir()}
    assert left == {*artifact.files, "manifest.json"}
    return files, [_lasting(record) for record in records] + [_lasting(each) for each in artifact.manifest["windows"]]


def _lasting(record: dict[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in record if key not in ("seconds", "pruning_seconds", "signature", SEAL)}


def sharded(spec: ReconstructedSpec, root: Path, count: int, order: Iterable[int] | None = None) -> Artifact:
    for at in range(count) if order is None else order:
        run(spec.split(count)[at], root)
    artifact = run(spec, root, count)
    assert artifact.manifest["resumed_windows"] == 0
    return artifact


class Stopping:
    """Stands for the training of a window, and stops a job when it is asked for one more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        self.left, self._real = after, vars(module)["reconstruct_window"]
        monkeypatch.setattr(module, "reconstruct_window", self)

    def __call__(self, *arguments: Any) -> Any:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return self._real(*arguments)


# --- several jobs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "count"), [("attention_mlp", 2), ("attention_mlp", BLOCKS + 2), ("block", 3),
                                               (2, 2), (2, 3), ("matrix", 2)])  # fmt: skip
def test_shards_of_the_dense_flow_give_the_bits_of_one_job(
    window: Any, count: int, root: Path, whole: Callable[[ReconstructedSpec], Result]
) -> None:
    spec = find(window)
    assert result(sharded(spec, root, count)) == whole(spec)
    manifests = [Artifact(root / shard.folder, shard).manifest for shard in spec.split(count)]
    indices = [manifest["windows"] for manifest in manifests]
    assert [index for each in indices for index in each] == list(range(len(whole(spec)[1]) // 2))
    blocks = [{record["blocks"][0] for record in whole(spec)[1] if record["index"] in each} for each in indices]
    assert sum(len(each) for each in blocks) == len(set().union(*blocks)), "a block was cut"
    assert window == 2 or max(map(len, blocks)) - min(map(len, blocks)) <= 1


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0)])
def test_the_order_of_shards_does_not_matter_in_the_dense_flow(
    order: tuple[int, ...], root: Path, whole: Callable[[ReconstructedSpec], Result]
) -> None:
    spec = find("attention_mlp")
    assert all(not shard.before for shard in spec.split(3))
    assert result(sharded(spec, root, 3, order)) == whole(spec)


CHAINED = [("attention_mlp", "sparse_dense", "dense"), (2, "sparse_dense", "dense"),
           ("matrix", "official_matrix", "dense"), ("attention_mlp", "dense", "recovered"),
           (2, "dense", "recovered"), ("attention_mlp", "sparse_local", "recovered")]  # fmt: skip


@pytest.mark.parametrize(("window", "flow", "inputs"), CHAINED)
def test_shards_in_a_chain_give_the_bits_of_one_job(
    window: Any, flow: str, inputs: str, root: Path, whole: Callable[[ReconstructedSpec], Result]
) -> None:
    spec = find(window, flow, inputs)
    first, second = spec.split(2)
    with pytest.raises(FreelunchError, match="manifest"):
        run(second, root)
    assert result(sharded(spec, root, 2)) == whole(spec)
    assert first in second.upstream() and not {*Artifact(root / first.folder, first).files} & {
        *Artifact(root / second.folder, second).files
    }


def test_a_shard_of_a_chain_without_windows_of_its_own_hands_on_those_before(
    root: Path, whole: Callable[[ReconstructedSpec], Result]
) -> None:
    spec = find("attention_mlp", "dense", "recovered")
    assert result(sharded(spec, root, BLOCKS + 2)) == whole(spec)
    manifests = [Artifact(root / shard.folder, shard).manifest for shard in spec.split(BLOCKS + 2)]
    assert [len(manifest["windows"]) for manifest in manifests] == [0, 2, 0, 2, 2]


@pytest.mark.parametrize("before", [1, 2])
def test_another_number_of_shards_trains_nothing_again(
    before: int, root: Path, whole: Callable[[ReconstructedSpec], Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = find("attention_mlp")
    sharded(spec, root, before) if before > 1 else run(spec, root)
    (root / spec.manifest).unlink()  # as Snakemake does before it runs a job again
    Stopping(monkeypatch, after=0)
    again = run(spec, root)
    assert again.manifest["resumed_windows"] == len(again.manifest["windows"]) and result(again) == whole(spec)


@pytest.mark.parametrize(("shard", "after"), [(0, 1), (1, 2)])
@pytest.mark.parametrize(("window", "flow", "inputs"), [("attention_mlp", "dense", "dense"), *CHAINED[2:4]])
def test_a_shard_that_was_killed_goes_on(
    window: Any, flow: str, inputs: str, shard: int, after: int, root: Path,
    whole: Callable[[ReconstructedSpec], Result], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    spec = find(window, flow, inputs)
    shards = spec.split(2)
    for each in shards[:shard]:
        run(each, root)
    with monkeypatch.context() as patched:
        Stopping(patched, after)
        with pytest.raises(KeyboardInterrupt):
            run(shards[shard], root)
    assert not (root / shards[shard].manifest).exists()
    assert run(shards[shard], root).manifest["resumed_windows"] == after
    for each in shards[shard + 1 :]:
        run(each, root)
    assert result(run(spec, root, 2)) == whole(spec)


@pytest.mark.parametrize("name", ["window-003.safetensors", "window-003.json"])
@pytest.mark.parametrize("inputs", ["dense", "recovered"])
def test_a_damaged_file_of_a_shard_is_named(inputs: str, name: str, root: Path) -> None:
    spec = find("attention_mlp", prune_inputs=inputs)
    for shard in spec.split(2):
        run(shard, root)
    path = root / spec.split(2)[1].folder / name
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(FreelunchError, match=rf"{spec.split(2)[1].name}/{name}: its contents are not what"):
        run(spec, root, 2)
    assert not (root / spec.manifest).exists()


def test_shards_are_no_part_of_what_a_result_is_called() -> None:
    spec = find("block")
    assert spec.split(1) == [] and len({shard.name for count in (2, 3) for shard in spec.split(count)}) == 5
    (again,) = (parse_spec(shard.model_dump(mode="json")) for shard in spec.split(2)[1:])
    assert isinstance(again, ShardSpec) and again == spec.split(2)[1] and again.reconstructed.key == spec.key


# --- a job that was killed -------------------------------------------------------------------------------------------

INTERRUPTED = [*((window, flow, "dense", after) for flow in FLOWS for window, after in (
                   ("attention_mlp", 1), ("attention_mlp", 4), ("matrix", 9))),
               ("matrix", "official_matrix", "dense", 4), ("matrix", "official_matrix", "dense", 13),
               ("attention_mlp", "sparse_local", "recovered", 3), (2, "sparse_dense", "dense", 1)]  # fmt: skip


@pytest.mark.parametrize(("window", "flow", "inputs", "after"), INTERRUPTED)
def test_an_interrupted_job_goes_on_with_the_same_bits(
    window: Any, flow: str, inputs: str, after: int, root: Path, whole: Callable[[ReconstructedSpec], Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    spec = find(window, flow, inputs)
    with monkeypatch.context() as patched:
        Stopping(patched, after)
        with pytest.raises(KeyboardInterrupt):
            run(spec, root)
    again = run(spec, root)
    assert again.manifest["resumed_windows"] == after and result(again) == whole(spec)


def test_what_comes_after_a_damaged_window_is_trained_again(
    root: Path, whole: Callable[[ReconstructedSpec], Result]
) -> None:
    spec = find("attention_mlp", "sparse_dense")
    path = run(spec, root).folder / "window-002.safetensors"
    (root / spec.manifest).unlink()
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    again = run(spec, root)
    assert again.manifest["resumed_windows"] == 2 and result(again) == whole(spec)


def die_before_window(root: str, after: int) -> None:
    """Run a job that kills itself."""
    real, left = vars(module)["reconstruct_window"], [None] * after

    def deadly(*arguments: Any) -> Any:
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left.pop()
        return real(*arguments)

    vars(module)["reconstruct_window"] = deadly
    run(find("attention_mlp", "sparse_local"), Path(root))


def test_a_job_that_was_killed_for_good_goes_on_with_the_same_bits(
    root: Path, whole: Callable[[ReconstructedSpec], Result]
) -> None:
    spec = find("attention_mlp", "sparse_local")
    code = f"import conftest, test_shards; test_shards.die_before_window({str(root)!r}, 3)"
    path = os.pathsep.join(map(str, [ROOT / "workflow", ROOT / "tests", Path(__file__).parent]))
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    again = run(spec, root)
    assert again.manifest["resumed_windows"] == 3 and result(again) == whole(spec)
