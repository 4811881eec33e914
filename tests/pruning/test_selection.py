"""Dropping the lowest scores: equal to loops and to one stable sort of everything, ties by position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from freelunch.pruning import selection
from freelunch.pruning.patterns import Unstructured
from freelunch.pruning.selection import count_lowest, drop_lowest

quickly = settings(deadline=None, max_examples=50)
seeds = st.integers(0, 2**31 - 1)

SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 2e-45, 1.1754942e-38, 1.17549435e-38, -1.1754942e-38, 1.0, 1.0000001, 0.99999994]
SPECIAL += [3.4028235e38, -3.4028235e38, 3.4028233e38, 65536.0, 65536.004, -1.0, -1.0000001, 2.0**-126, 2.0**127]
floats = st.one_of(st.sampled_from(SPECIAL), st.floats(width=32, allow_nan=False, allow_infinity=False))
few = st.sampled_from([0.0, -0.0, 1.0, -1.0])


def tensors_of(values: st.SearchStrategy[float]) -> st.SearchStrategy[list[Tensor]]:
    lists = st.lists(values, min_size=1, max_size=12).map(lambda each: torch.tensor(each, dtype=torch.float32))
    return st.lists(lists, min_size=1, max_size=6)


def literal_drop(row: list[float], count: int) -> list[bool]:
    kept = [True] * len(row)
    for _ in range(count):
        kept[min((i for i in range(len(row)) if kept[i]), key=lambda i: (row[i], i))] = False
    return kept


def literal_counts(tensors: list[Tensor], count: int) -> dict[str, int]:
    """By sorting all scores together: ``sorted`` is stable, and takes both zeros for equal."""
    everything = [(value, owner) for owner, tensor in enumerate(tensors) for value in tensor.flatten().tolist()]
    owners = [owner for _, owner in sorted(everything, key=lambda pair: pair[0])[:count]]
    return {str(owner): owners.count(owner) for owner in range(len(tensors))}


def counted(tensors: list[Tensor], count: int) -> dict[str, int]:
    return count_lowest(lambda: ((str(name), tensor) for name, tensor in enumerate(tensors)), count)


def random_tensors(seed: int, distinct: int) -> list[Tensor]:
    """Tensors of many sizes; ``distinct`` different scores, or with 0 all different, from tiny to huge."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(int(torch.randint(1, 12, (), generator=generator))):
        shape = [int(side) for side in torch.randint(1, 9, (2,), generator=generator)]
        if distinct:
            found.append(torch.randint(distinct, shape, generator=generator).float() - 1)
        else:
            size = torch.randint(-40, 38, shape, generator=generator).double()
            found.append((torch.randn(shape, generator=generator).double() * 10.0**size).float())
    return found


@st.composite
def grouped(draw: st.DrawFn) -> Tensor:
    """Scores of several groups; small groups and large ones go different ways."""
    size = draw(st.one_of(st.integers(1, 8), st.integers(9, 20)))
    values = draw(st.sampled_from([floats, few, st.one_of(floats, few)]))
    rows = draw(st.lists(st.lists(values, min_size=size, max_size=size), min_size=1, max_size=6))
    return torch.tensor(rows, dtype=torch.float32)


@quickly
@given(grouped(), st.data())
def test_every_group_loses_its_lowest(scores, data):
    count = data.draw(st.integers(0, scores.shape[1]))
    wanted = [literal_drop(row, count) for row in scores.tolist()]
    mask = drop_lowest(scores, count)
    assert mask.dtype == torch.bool and mask.tolist() == wanted
    assert drop_lowest(scores, torch.full((len(scores),), count)).tolist() == wanted
    assert drop_lowest(scores.double(), count).tolist() == wanted
    assert drop_lowest(scores.T.contiguous().T, count).tolist() == wanted


@quickly
@given(grouped(), st.data())
def test_groups_may_lose_different_counts(scores, data):
    counts = [data.draw(st.integers(0, scores.shape[1])) for _ in scores]
    mask = drop_lowest(scores, torch.tensor(counts))
    assert mask.dtype == torch.bool
    assert mask.tolist() == [literal_drop(row, count) for row, count in zip(scores.tolist(), counts, strict=True)]


@pytest.mark.parametrize("counts", [3, torch.tensor([3, 3]), torch.tensor([3])], ids=["same", "each", "one"])
def test_among_equal_scores_the_earlier_go(counts):
    scores = torch.ones(1 if isinstance(counts, Tensor) and len(counts) == 1 else 2, 1000)
    mask = drop_lowest(scores, counts)
    assert mask.sum(1).tolist() == [997] * len(scores) and not bool(mask[:, :3].any())


@pytest.mark.parametrize("counts", [0, 2, torch.tensor([1, 2])], ids=str)
def test_scores_are_left_alone(counts):
    scores = torch.tensor([[3.0, 1.0, 2.0], [-1.0, 5.0, 0.0]])
    before = scores.clone()
    drop_lowest(scores, counts)
    drop_lowest(scores[:1], 2)
    assert torch.equal(scores, before)


@quickly
@given(tensors_of(floats), st.data())
def test_counts_are_those_of_sorting_everything(tensors, data):
    count = data.draw(st.integers(0, sum(map(len, tensors))))
    assert counted(tensors, count) == literal_counts(tensors, count)


@quickly
@given(tensors_of(few), st.data())
def test_among_equal_scores_earlier_tensors_lose_first(tensors, data):
    count = data.draw(st.integers(0, sum(map(len, tensors))))
    assert counted(tensors, count) == literal_counts(tensors, count)


def test_scores_that_differ_in_the_last_bit_only_are_told_apart():
    # all in one bin of the upper 16 bits, for either sign
    for sign in (1, -1):
        one = torch.tensor([1.0]).view(torch.int32)
        ladder = sign * (one + torch.arange(64)).int().view(torch.float32)
        tensors = [ladder[40:], ladder[7:40:2], ladder[8:40:2], ladder[:7]]
        for count in range(65):
            assert counted(tensors, count) == literal_counts(tensors, count)


@settings(deadline=None, max_examples=12)
@given(seeds, st.sampled_from([0, 0, 1, 2, 5]), st.sampled_from([1, 3, 7, 64]), st.floats(0, 1))
def test_the_histogram_may_be_taken_in_pieces(seed, distinct, chunk, share):
    tensors = random_tensors(seed, distinct)
    count = round(share * sum(tensor.numel() for tensor in tensors))
    wanted = literal_counts(tensors, count)
    assert counted(tensors, count) == wanted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_CHUNK", chunk)
        assert counted(tensors, count) == wanted


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_scores_are_counted_too(dtype):
    tensors = [tensor.clamp(-6e4, 6e4).to(dtype) for tensor in random_tensors(3, 0)]
    total = sum(tensor.numel() for tensor in tensors)
    for count in (0, 1, total // 3, total // 2, total - 1, total):
        assert counted(tensors, count) == literal_counts(tensors, count)


def test_tensors_may_lie_in_memory_in_any_order():
    scores = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    tensors = [scores.T, scores[:, ::2], scores[::3]]
    assert counted(tensors, 40) == literal_counts(tensors, 40)


def test_the_scores_are_asked_for_twice_and_never_held_together():
    alive, most, passes = 0, 0, 0

    class Counted:
        def __init__(self) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def scores() -> Any:
        nonlocal passes
        passes += 1
        for name in range(20):
            tensor = torch.full((10,), float(name))
            tensor.guard = Counted()
            yield str(name), tensor
            del tensor

    assert sum(count_lowest(scores, 55).values()) == 55
    assert passes == 2 and most <= 2


def test_more_than_there_is_is_refused():
    with pytest.raises(ValueError, match="cannot drop 7 of 6 scores"):
        counted([torch.ones(4), torch.ones(2)], 7)


@quickly
@given(seeds, st.sampled_from([0, 0, 1, 2, 5]), st.floats(0, 1))
def test_masks_with_these_counts_are_the_global_drop_by_one_stable_sort(seed, distinct, share):
    tensors = random_tensors(seed, distinct)
    everything = torch.cat([tensor.flatten() for tensor in tensors])
    count = round(share * len(everything))
    kept = torch.ones_like(everything, dtype=torch.bool)
    kept[everything.sort(stable=True).indices[:count]] = False
    wanted = [part.reshape(t.shape) for t, part in zip(tensors, kept.split([t.numel() for t in tensors]), strict=True)]
    pattern, counts = Unstructured(0.5, "model"), counted(tensors, count)
    for name, (tensor, mask) in enumerate(zip(tensors, wanted, strict=True)):
        assert torch.equal(pattern.mask(tensor, counts[str(name)]), mask)
