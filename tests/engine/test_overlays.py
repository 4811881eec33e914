"""Overlays: packed masks come back as they went in, and stacked sources read as the tensors they stand for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from freelunch.engine.overlays import InMemory, Masked, Replaced, SafetensorsFiles, pack, unpack
from freelunch.errors import FreelunchError


@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 2**31 - 1))
def test_a_packed_mask_of_any_width_comes_back(rows, columns, seed):
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack(mask)
    assert packed.dtype == torch.uint8 and packed.shape == (rows, -(-columns // 8))
    back = unpack(packed, columns)
    assert back.dtype == torch.bool and torch.equal(back, mask)


def test_the_first_column_is_the_high_bit_and_padding_is_zero():
    mask = torch.tensor([[1, 0, 0, 0, 0, 0, 1, 1, 1, 0], [0] * 9 + [1]]).bool()
    assert pack(mask).tolist() == [[0b10000011, 0b10000000], [0, 0b01000000]]


@pytest.mark.parametrize("value", [True, False])
def test_masks_of_one_value_come_back(value):
    mask = torch.full((3, 17), value)
    assert torch.equal(unpack(pack(mask), 17), mask)


def test_pruned_weights_read_as_zero_and_all_others_as_they_are():
    weight, bias = torch.randn(4, 10), torch.randn(4)
    mask = torch.rand(4, 10) < 0.5
    source = Masked(InMemory({"weight": weight, "bias": bias}), InMemory({"weight": pack(mask)}))
    read = source.load("weight")
    assert torch.equal(read[mask], weight[mask]) and not read[~mask].any()
    assert torch.equal(source.load("bias"), bias)
    assert torch.equal(source.mask("weight"), mask) and source.mask("bias") is None
    assert "weight" in source and "other" not in source


class HeadersOnly(SafetensorsFiles):
    def load(self, name):
        raise AssertionError(f"{name} was read")


def test_a_mask_is_read_without_the_weights_that_it_lies_over(tmp_path):
    save_file({"w": torch.randn(3, 10).bfloat16()}, tmp_path / "dense.safetensors")
    mask = torch.rand(3, 10) < 0.5
    dense, changed = HeadersOnly([tmp_path / "dense.safetensors"]), InMemory({"new": torch.ones(2)})
    source = Masked(Replaced(dense, changed), InMemory({"w": pack(mask)}))
    found = source.mask("w")
    assert found is not None and torch.equal(found, mask)
    assert source.shape("w") == (3, 10) and source.shape("new") == (2,)


def test_a_pruned_weight_reads_as_zero_whatever_it_was():
    weight = torch.tensor([[float("nan"), float("inf"), -1.0, 2.0]])
    mask = torch.tensor([[False, False, False, True]])
    read = Masked(InMemory({"w": weight}), InMemory({"w": pack(mask)})).load("w")
    assert read.tolist() == [[0, 0, 0, 2]] and not read.signbit().any()


def test_reading_through_a_mask_leaves_the_base_alone():
    weight = torch.ones(2, 4)
    Masked(InMemory({"w": weight}), InMemory({"w": pack(torch.zeros(2, 4))})).load("w")
    assert bool((weight == 1).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_overlays_keep_the_dtype(dtype):
    base = InMemory({"w": torch.randn(2, 8).to(dtype)})
    assert Masked(base, InMemory({"w": pack(torch.ones(2, 8))})).load("w").dtype == dtype


def test_a_replaced_tensor_hides_the_one_below():
    base = InMemory({"a": torch.zeros(1), "b": torch.zeros(1)})
    source = Replaced(base, InMemory({"b": torch.ones(1)}))
    assert source.load("a").item() == 0 and source.load("b").item() == 1
    assert "a" in source and "c" not in source


def test_a_recovered_model_shows_trained_tensors_over_masked_ones_over_the_base():
    base = InMemory({name: torch.ones(1, 8) for name in "abc"})
    half = torch.tensor([[True] * 4 + [False] * 4])
    source = Replaced(
        Masked(base, InMemory({"a": pack(half), "b": pack(half)})), InMemory({"b": torch.full((1, 8), 2.0)})
    )
    assert [source.load(name).sum().item() for name in "abc"] == [4, 16, 8]


def test_tensors_of_several_files_are_one_source(tmp_path):
    first, second = {"a": torch.randn(3)}, {"b": torch.randn(2, 2).bfloat16()}
    save_file(first, tmp_path / "1.safetensors")
    save_file(second, tmp_path / "2.safetensors")
    source = SafetensorsFiles([tmp_path / "1.safetensors", tmp_path / "2.safetensors"])
    assert torch.equal(source.load("a"), first["a"]) and torch.equal(source.load("b"), second["b"])
    assert "a" in source and "b" in source and "c" not in source


def test_a_missing_tensor_is_named_with_the_files(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "1.safetensors")
    with pytest.raises(FreelunchError, match=r"no tensor b in .*1\.safetensors"):
        SafetensorsFiles([tmp_path / "1.safetensors"]).load("b")
    with pytest.raises(FreelunchError, match="no tensor b in no file"):
        SafetensorsFiles([]).load("b")


def test_two_files_with_a_tensor_of_the_same_name_are_refused(tmp_path):
    paths = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    for path in paths:
        save_file({"same": torch.ones(1)}, path)
    with pytest.raises(FreelunchError, match=r"2\.safetensors: holds same, which .*1\.safetensors holds as well"):
        SafetensorsFiles(paths)


@pytest.mark.parametrize("keep", [0, 4, 20, -1], ids="{} bytes".format)
def test_a_truncated_file_is_refused_by_name(tmp_path, keep):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(64)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FreelunchError, match=r"model\.safetensors: cannot be read as safetensors"):
        SafetensorsFiles([path])


def test_a_pickle_is_refused(tmp_path):
    torch.save({"a": torch.ones(64)}, tmp_path / "model.bin")
    with pytest.raises(FreelunchError, match=r"model\.bin: cannot be read as safetensors"):
        SafetensorsFiles([tmp_path / "model.bin"])


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(FreelunchError, match=r"absent\.safetensors: cannot be read"):
        SafetensorsFiles([tmp_path / "absent.safetensors"])


def test_writing_to_a_loaded_tensor_reaches_neither_the_file_nor_the_next_reader(tmp_path):
    path = tmp_path / "1.safetensors"
    save_file({"a": torch.ones(8)}, path)
    before = path.read_bytes()
    source = SafetensorsFiles([path])
    source.load("a").zero_()
    assert bool((source.load("a") == 1).all()) and path.read_bytes() == before
