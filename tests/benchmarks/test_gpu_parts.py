"""Benchmarks of the GPU on a CPU: they count what is done, wrong results show, and no failure ends a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import blocks, cache, cells, profiling, sparse
from freelunch.engine.states import batches, load
from freelunch.plan.facts import Facts

CPU = torch.device("cpu")
TINY: Facts = blocks.SMALLEST.shapes["72B"]


@pytest.fixture
def block(tmp_path: Path) -> blocks.Block:
    return blocks.Block("tiny", TINY, 16, CPU, tmp_path)


# --- cells -----------------------------------------------------------------------------------------------------------


def test_a_failure_is_a_row_and_what_there_is_no_time_for_too() -> None:
    def half() -> Iterator[cells.Row]:
        yield {"value": 1}
        raise MemoryError("out of\nmemory")

    rows = cells.run_cells(
        [
            cells.Cell({"what": "half"}, half),
            cells.Cell({"what": "long"}, half, seconds=1000),
            cells.Cell({"what": "whole"}, lambda: [{"value": 2}]),
        ],
        CPU,
        seconds=60,
    )
    assert [row.pop("took", None) is None for row in rows] == [False, True, True, False]
    assert rows[0] == {"what": "half", "value": 1} and rows[3] == {"what": "whole", "value": 2}
    assert rows[1] == {"what": "half", "error": "MemoryError: out of"}
    assert rows[2]["what"] == "long" and "s were left" in rows[2]["left out"]
    lines = cells.table(rows, ["what"], {"value": ".1f"})
    assert lines[1].split() == ["half", "1.0"] and lines[2].endswith("error: MemoryError: out of")
    late = cells.run_cells([cells.Cell({}, lambda: [{"value": 2}])], CPU, seconds=0)
    assert "left out" in late[0]


def test_what_is_asked_of_cuda_exists_and_events_are_its_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"init": None, "synchronize": None, "reset_peak_memory_stats": None, "empty_cache": None,
                        "max_memory_allocated": 3 * 2**30}.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, create_autospec(getattr(torch.cuda, name), return_value=value))
    clock = iter([0.0, 5.0, 7.0, 12.0])

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = next(clock)

        def elapsed_time(self, end: Event) -> float:
            return 1000 * (end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    cuda = torch.device("cuda")
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer, steps = torch.optim.SGD([parameter], lr=0.1), cells.Steps(cuda)

    def measured() -> Iterator[cells.Row]:
        with steps.taken():
            for _ in range(4):
                optimizer.step()
        optimizer.step()  # not counted: the context is closed
        yield {"fastest": steps.fastest(), "gib": cells.peak_gib(cuda), "seconds": cells.fastest(lambda: None, cuda)}

    (row,) = cells.run_cells([cells.Cell({}, measured)], cuda, 60)
    assert (row["fastest"], row["gib"]) == (2.0, 3.0) and row["seconds"] < 1
    torch.cuda.reset_peak_memory_stats.assert_called_with(cuda)
    torch.cuda.empty_cache.assert_called_once()


def test_a_profile_lists_kernels_and_counts_overlapping_ones_once() -> None:
    def event(name: str, start: float, length: float, kind: str = "kernel") -> dict[str, Any]:
        return {"ph": "X", "cat": kind, "name": name, "ts": start, "dur": length}

    events = [event("gemm", 0, 3e5), event("add", 1e5, 1e5), event("gemm", 6e5, 1e5), event("up", 0, 5e5, "gpu_memcpy"),
              event("Optimizer.step", 0, 9e5, "gpu_user_annotation"), {"ph": "M", "name": "process_name"}]  # fmt: skip
    row = profiling.summary(events, "kernel", 1.0)
    assert row["waiting"] == pytest.approx(0.6) and row["copying"] == pytest.approx(0.5)
    assert [(each["name"], each["calls"]) for each in row["kernels"]] == [("gemm", 2), ("add", 1)]
    assert row["kernels"][0]["seconds"] == pytest.approx(0.4)
    with pytest.raises(RuntimeError, match="no event"):
        profiling.summary(events[3:], "kernel", 1.0)


# --- blocks ----------------------------------------------------------------------------------------------------------


def test_operations_are_those_of_counting(block: blocks.Block) -> None:
    tokens, length, width = 32, 16, TINY.num_attention_heads * TINY.head_dim
    weights = {name: each.numel() for name, each in block.weights.items() if ".layers." in name and each.ndim > 1}
    attention = 2 * sum(4 * seen * width for seen in range(1, length + 1))  # two sequences
    for part, inside in (("block", "proj"), ("attention", "self_attn"), ("mlp", "mlp")):
        products = 2 * tokens * sum(count for name, count in weights.items() if inside in name)
        found = blocks.forward_operations(TINY, tokens, length, part)
        assert found == products + (attention if part != "mlp" else 0)

    # torch counts the products of a training; attention on the CPU it does not
    flow, windows = blocks._flow(block, "attention_mlp", 4, 2)
    for window in windows:
        flow.pairs(window)
        with FlopCounterMode(display=False) as counter:
            fit = blocks._trained(block, flow, window, 2, False).fit
        part, passes = window.part(0), 3 * fit.sequences + 2 * len(fit.steps)
        each = blocks.forward_operations(TINY, length, length, part) - (part == "attention") * attention / 2
        assert counter.get_total_flops() == passes * each


def test_an_output_that_is_wrong_shows(block: blocks.Block, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = blocks.difference_rows(block)
    assert 0 < row["difference"] < 0.02
    run_block = blocks.Network.run_block
    monkeypatch.setattr(
        blocks.Network, "run_block", lambda self, *given: run_block(self, *given) * (1 + (self.products.itemsize == 2))
    )
    monkeypatch.setattr(blocks, "products", lambda *_: torch.bfloat16)
    (row,) = blocks.difference_rows(block)
    assert row["difference"] > 0.5


def test_all_that_is_measured_of_blocks_is_measured() -> None:
    result = json.loads(json.dumps(blocks.measure(CPU, smallest=True, seconds=100)))
    assert not [row for row in result["rows"] if "error" in row or "left out" in row]
    wanted = {("8B", f"reconstruct {window}", batch) for window in blocks.WINDOWS for batch in (2, 8)}
    wanted |= {("72B", what, 2) for what in ("dense pass", "masks (wanda)", "masks and weights (sparsegpt)")}
    assert wanted <= {(row["shape"], row["what"], row.get("batch")) for row in result["rows"]}
    for row in result["rows"]:
        if row.get("tflops") is not None:
            assert row["share"] == pytest.approx(row["tflops"] / result["rate_tflops"]) and row["predicted_gib"] > 0
        if "losses" in row:
            assert all(last < first for first, last in row["losses"])
    assert any("of training, window block" in line for line in blocks.lines(result))
    left = blocks.measure(CPU, smallest=True, seconds=0.3)
    assert all("left out" in row for row in left["rows"][-5:]) and blocks.lines(left)


# --- the dense cache -------------------------------------------------------------------------------------------------


def test_a_cache_is_read_as_it_is_or_the_row_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = json.loads(json.dumps(cache.measure(CPU, smallest=True, seconds=60, needed={"it": 2.0}, folder=tmp_path)))
    assert not [row for row in result["rows"] if "error" in row] and len(result["rows"]) == 10
    assert set(result["gains"]) == {row["what"] for row in result["rows"]}
    assert "a CPU has no copies" in cache.lines(result)[-1]

    path = tmp_path / "states.safetensors"
    cache._write(path, (4, 8, 16), CPU)
    assert not torch.equal(*load(path)[:2])
    parts = list(batches(4, 3))
    for reader in cache.READERS.values():
        assert torch.equal(torch.cat(list(reader(load(path), parts, CPU))), load(path))
    monkeypatch.setitem(cache.READERS, "plain", lambda states, parts, _: (states[rows] + 1 for rows in parts))
    with pytest.raises(RuntimeError, match="batch 1 did not arrive"):
        list(cache.reading_rows(path, cache.SMALLEST, CPU, "plain"))


def test_plain_copies_train_to_the_same_losses(block: blocks.Block) -> None:
    rows = [next(blocks.training_rows(block, "block", 2, copies=copies)) for copies in (None, cache.PlainCopies(CPU))]
    assert rows[0]["losses"] == rows[1]["losses"]


@pytest.mark.parametrize(("plain", "verdict"), [(1.0, "worth it"), (1.95, "do without")])
def test_rings_stay_if_training_or_the_dense_pass_is_a_tenth_faster(plain: float, verdict: str) -> None:
    rows: list[cells.Row] = [
        {"what": "page cache", "how": "rings", "speed": 9.0}, {"what": "page cache", "how": "plain", "speed": 1.0},
        {"what": "training of 8B", "how": "rings", "speed": 2.0},
        {"what": "training of 8B", "how": "plain", "speed": plain},
        {"what": "disk", "how": "rings", "speed": 2.0}, {"what": "disk", "how": "plain", "error": "it"},
    ]  # fmt: skip
    gains = cache.gains(rows)
    assert gains == pytest.approx({"page cache": 8.0, "training of 8B": 2 / plain - 1})
    result = {"rows": rows, "gains": gains, "needed": {}, "written_gb_per_s": 1.0, "accelerator": True}
    assert verdict in cache.lines(result)[-1]


# --- sparse products -------------------------------------------------------------------------------------------------


def test_sparse_products_are_compared_with_exact_ones() -> None:
    packs = (lambda weight: weight, lambda weight: weight.roll(1, 0))
    rows = [sparse._Product(64, 128, CPU, pack).row(16) for pack in packs]
    assert all(0 < row["dense_error"] < 0.01 and row["ratio"] > 0 for row in rows)
    assert rows[0]["sparse_error"] == rows[0]["dense_error"] and rows[1]["sparse_error"] > 0.5
    weight = sparse._Product(64, 128, CPU, lambda weight: weight).weight
    assert (weight.view(-1, 4).count_nonzero(1) == 2).all()
    assert sparse.lines({"rows": [{"matrix": "8B q", "library": "default", "tokens": 16, **rows[0]}]})


def test_a_device_without_sparse_products_is_one_row() -> None:
    result = sparse.measure(CPU, smallest=True)
    assert len(result["rows"]) == 1 and "no 2:4 products" in "\n".join(sparse.lines(result))
    # where it should have them and they fail, each is a row
    rows = cells.run_cells(sparse._cells(CPU, (1,), {"tiny": TINY}), CPU, 60)
    assert len(rows) == len(sparse.PACKED) * len(sparse.ROLES)
    assert all("Only CUDA tensors" in row["error"] for row in rows)
