"""Overlays: packed masks come back as they went in, and stacked sources read as the tensors they stand for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from freelunch.engine.overlays import InMemory, Masked, Replaced, SafetensorsFiles, pack, unpack
from freelunch.errors import FreelunchError


@given(st.integers(1, 6), st.integers(1, 40), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 2**31 - 1))
def test_a_packed_mask_of_any_width_comes_back(rows, columns, share, seed):
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < share
    packed = pack(mask)
    assert packed.dtype == torch.uint8 and packed.shape == (rows, -(-columns // 8))
    back = unpack(packed, columns)
    assert back.dtype == torch.bool and torch.equal(back, mask)


def test_the_first_column_is_the_high_bit_and_padding_is_zero():
    mask = torch.tensor([[1, 0, 0, 0, 0, 0, 1, 1, 1, 0], [0] * 9 + [1]]).bool()
    assert pack(mask).tolist() == [[0b10000011, 0b10000000], [0, 0b01000000]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_pruned_weights_read_as_zero_whatever_they_were_and_all_others_as_they_are(dtype):
    weight, bias = torch.randn(4, 10).to(dtype), torch.randn(4)
    mask = torch.rand(4, 10) < 0.5
    weight[0, :2], mask[0, :3] = torch.tensor([float("nan"), float("inf")]), torch.tensor([False, False, True])
    before = weight.clone()
    source = Masked(InMemory({"weight": weight, "bias": bias}), InMemory({"weight": pack(mask)}))
    read = source.load("weight")
    assert read.dtype == dtype and torch.equal(read[mask], weight[mask])
    assert not read[~mask].any() and not read[~mask].signbit().any()
    assert torch.equal(weight.nan_to_num(), before.nan_to_num())  # the base is left alone
    assert torch.equal(source.load("bias"), bias)
    mask_read = source.mask("weight")
    assert mask_read is not None and torch.equal(mask_read, mask) and source.mask("bias") is None
    assert "weight" in source and "other" not in source


def test_trained_tensors_lie_over_masked_ones_over_the_base():
    base = InMemory({name: torch.ones(1, 8) for name in "abc"})
    half = pack(torch.tensor([[True] * 4 + [False] * 4]))
    source = Replaced(Masked(base, InMemory({"a": half, "b": half})), InMemory({"b": torch.full((1, 8), 2.0)}))
    assert [source.load(name).sum().item() for name in "abc"] == [4, 16, 8]
    assert "a" in source and "d" not in source


def test_a_mask_is_read_without_the_weights_that_it_lies_over(tmp_path):
    class HeadersOnly(SafetensorsFiles):
        def load(self, name):
            raise AssertionError(f"{name} was read")

    save_file({"w": torch.randn(3, 10).bfloat16()}, tmp_path / "dense.safetensors")
    mask = torch.rand(3, 10) < 0.5
    dense, changed = HeadersOnly([tmp_path / "dense.safetensors"]), InMemory({"new": torch.ones(2)})
    source = Masked(Replaced(dense, changed), InMemory({"w": pack(mask)}))
    assert torch.equal(source.mask("w"), mask)
    assert source.shape("w") == (3, 10) and source.shape("new") == (2,)


def test_tensors_of_several_files_are_one_source_that_no_reader_can_write_to(tmp_path):
    tensors = {"a": torch.randn(3), "b": torch.randn(2, 2).bfloat16()}
    paths = [tmp_path / f"{name}.safetensors" for name in tensors]
    for path, (name, tensor) in zip(paths, tensors.items(), strict=True):
        save_file({name: tensor}, path)
    before = paths[0].read_bytes()
    source = SafetensorsFiles(paths)
    source.load("a").zero_()
    assert all(torch.equal(source.load(name), tensor) for name, tensor in tensors.items())
    assert "a" in source and "b" in source and "c" not in source and paths[0].read_bytes() == before
    with pytest.raises(FreelunchError, match=r"no tensor c in .*a\.safetensors, .*b\.safetensors"):
        source.load("c")
    with pytest.raises(FreelunchError, match="no tensor b in no file"):
        SafetensorsFiles([]).load("b")
    save_file({"b": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(FreelunchError, match=r"other\.safetensors: holds b, which .*b\.safetensors holds as well"):
        source.add(tmp_path / "other.safetensors")


@pytest.mark.parametrize("kind", ["0 bytes", "4 bytes", "20 bytes", "-1 bytes", "pickle", "absent"])
def test_a_file_that_is_no_safetensors_file_is_refused_by_name(tmp_path, kind):
    path = tmp_path / "model.safetensors"
    if kind == "pickle":
        torch.save({"a": torch.ones(64)}, path)
    elif kind != "absent":
        save_file({"a": torch.ones(64)}, path)
        path.write_bytes(path.read_bytes()[: int(kind.split()[0])])
    with pytest.raises(FreelunchError, match=r"model\.safetensors: cannot be read as safetensors"):
        SafetensorsFiles([path])
