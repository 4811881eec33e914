"""Hidden states on disk, and dense states that do not depend on which boundaries were kept."""

from __future__ import annotations

import gc
import json
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from freelunch.engine.blocks import find_halves
from freelunch.engine.overlays import InMemory
from freelunch.engine.states import States, batches, check_finite, create, load, scratch
from freelunch.engine.streaming import Network
from freelunch.errors import FreelunchError
from freelunch.recover.windows import boundaries_to_keep
from tiny import random_model, random_tokens

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
BLOCKS, SEQUENCES, LENGTH, BATCH = 3, 5, 12, 2


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (2, 4, 64)], ids=str)
def test_what_is_written_into_a_created_file_is_in_a_safetensors_file(tmp_path, dtype, shape):
    path = tmp_path / "states.safetensors"
    path.write_bytes(bytes(10_000))  # to be replaced
    values = torch.randn(shape).to(dtype)
    room = create(path, shape, dtype)
    assert room.shape == values.shape and room.dtype == dtype
    for rows in batches(shape[0], 2):
        room[rows] = values[rows]
    del room
    gc.collect()
    assert load(path).dtype == dtype and torch.equal(load(path), values)
    with safe_open(path, framework="pt") as file:
        assert list(file.keys()) == ["hidden"]
        assert torch.equal(file.get_tensor("hidden"), values)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert start % 64 == 0 and len(content) == start + values.numel() * dtype.itemsize
    assert json.loads(content[8:start])["hidden"]["data_offsets"] == [0, values.numel() * dtype.itemsize]


def test_scratch_room_has_no_file_and_holds_what_is_written(tmp_path):
    rooms = [scratch(tmp_path, (2, 3, 4), torch.bfloat16) for _ in range(2)]
    assert list(tmp_path.iterdir()) == []
    for value, room in enumerate(rooms):
        room.fill_(value)
    assert [room.unique().tolist() for room in rooms] == [[0], [1]]


@given(st.integers(0, 50), st.integers(1, 60))
def test_batches_cover_every_sequence_once_in_order(count, size):
    slices = list(batches(count, size))
    assert [i for rows in slices for i in range(count)[rows]] == list(range(count))
    assert all(0 < rows.stop - rows.start <= size for rows in slices)


# --- what is kept ----------------------------------------------------------------------------------------------------


@given(st.integers(1, 100), st.integers(1, 10_000), st.integers(0, 200), st.integers(0, 9_999))
def test_kept_boundaries_fill_the_budget_evenly_from_end_to_end_and_both_ends_are_kept_whatever_it_is(
    blocks, each, hold, rest
):
    kept = boundaries_to_keep(blocks, each, hold * each + rest % each)
    assert kept[0] == 0 and kept[-1] == blocks and kept == sorted(set(kept))
    assert len(kept) == min(max(hold, 2), blocks + 1)
    gaps = [after - before for before, after in pairwise(kept)]
    assert max(gaps) - min(gaps) <= 1


# --- dense states ----------------------------------------------------------------------------------------------------


class Dense:
    """A tiny dense model with its states at every block boundary, as the dense stage computes them."""

    def __init__(self, family, dtype):
        model = random_model(family, dtype=dtype)
        self.network = Network(model.config, InMemory(dict(model.state_dict())), dtype)
        tokens = random_tokens(SEQUENCES, LENGTH)
        parts = [self.network.embed(part) for part in tokens.split(BATCH)]
        self.boundaries = {0: torch.cat(parts)}
        for index in range(BLOCKS):
            with self.network.block(index) as block:
                parts = [self.network.run_block(index, block, part) for part in parts]
            self.boundaries[index + 1] = torch.cat(parts)

    def halves(self, block):
        hidden = self.boundaries[block][:1]
        with self.network.block(block) as module:
            return find_halves(module, hidden, self.network.calls(*hidden.shape[:2])[block])

    def states(self, kept, folder):
        return States(self.network, {at: self.boundaries[at] for at in kept}, BATCH, folder)


@pytest.fixture(scope="module", params=["llama", "opt"])
def dense(request):
    return Dense(request.param, torch.bfloat16)


SUBSETS = [(0, *rest) for count in range(BLOCKS + 1) for rest in combinations(range(1, BLOCKS + 1), count)]


@pytest.mark.parametrize("kept", SUBSETS, ids=str)
def test_states_have_the_same_bits_whatever_boundaries_were_kept(dense, kept, tmp_path):
    everything = dense.states(range(BLOCKS + 1), tmp_path)
    walk = dense.states(kept, tmp_path)
    for position in range(2 * BLOCKS + 1):
        halves = dense.halves((position - 1) // 2) if position % 2 else None
        at = dense.states(kept, tmp_path).at(position, halves)
        assert torch.equal(at, everything.at(position, halves)), f"position {position}, asked for alone"
        # a walk has the halves of the block at hand, and goes on from the middle of it
        halves = dense.halves((position - 1) // 2) if position else None
        assert torch.equal(walk.at(position, halves), at), f"position {position}, in a walk"
        if position % 2 == 0:
            assert torch.equal(at, dense.boundaries[position // 2])
    assert list(tmp_path.iterdir()) == []


def test_dropping_what_was_passed_changes_no_bits(dense, tmp_path):
    walk = dense.states((0,), tmp_path)
    for position in range(0, 2 * BLOCKS + 1, 2):
        walk.drop_before(position)
        assert torch.equal(walk.at(position), dense.boundaries[position // 2])
    # and one can go back
    assert torch.equal(walk.at(2), dense.boundaries[1])


def test_a_state_between_halves_is_no_start_for_one_who_does_not_know_the_halves(dense, tmp_path):
    # as when windows 0.attention and 2.attention are trained, and those between were finished by an earlier job
    walk = dense.states((0,), tmp_path)
    walk.at(1, dense.halves(0))
    assert torch.equal(walk.at(4), dense.boundaries[2])


def test_states_at_the_input_of_the_network_are_required(dense, tmp_path):
    with pytest.raises(FreelunchError, match="lacks the states at the first block's input"):
        dense.states((1, 2), tmp_path)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sequence", [0, 16, 39])
def test_states_that_are_not_finite_are_reported_and_large_ones_are_not(dtype, sequence):
    inf = float("inf")
    for bad in ([float("nan"), 0], [inf, 0], [-inf, 0], [inf, -inf]):
        states = torch.full((40, 2, 3), torch.finfo(dtype).max, dtype=dtype)
        check_finite(states, "here")
        states[sequence, 1, :2] = torch.tensor(bad)
        with pytest.raises(FreelunchError, match=r"^here: hidden states contain NaN or infinity; try dtype: bfloat16"):
            check_finite(states, "here")


def test_computed_states_that_are_not_finite_name_the_block(tmp_path):
    model = random_model("llama")
    state = dict(model.state_dict())
    state["model.layers.1.mlp.up_proj.weight"] = state["model.layers.1.mlp.up_proj.weight"] * float("nan")
    network = Network(model.config, InMemory(state), torch.float32)
    walk = States(network, {0: network.embed(random_tokens(2, 4))}, 2, tmp_path)
    walk.at(2)
    with pytest.raises(FreelunchError, match=r"block 1\b"):
        walk.at(4)
