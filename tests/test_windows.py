"""Windows: a tiling has no gap and no overlap, and every window is called by what it covers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freelunch.errors import FreelunchError
from freelunch.windows import Window, parse_window, tile

depths = st.integers(1, 60)


def fitting(blocks: int) -> st.SearchStrategy:
    names = st.sampled_from(["attention_mlp", "block"])
    return names if blocks < 2 else st.one_of(names, st.integers(2, blocks))


@given(depths.flatmap(lambda blocks: st.tuples(st.just(blocks), fitting(blocks))))
def test_a_tiling_covers_every_half_block_once_and_in_order(case):
    blocks, window = case
    windows = tile(window, blocks)
    assert [half for w in windows for half in range(w.start, w.stop)] == list(range(2 * blocks))
    assert [w.index for w in windows] == list(range(len(windows)))
    size = parse_window(window)
    assert all(w.stop - w.start == size for w in windows[:-1])
    assert 0 < windows[-1].stop - windows[-1].start <= size


@given(depths.flatmap(lambda blocks: st.tuples(st.just(blocks), fitting(blocks))))
def test_blocks_and_parts_say_which_half_blocks_a_window_holds(case):
    blocks, window = case
    for w in tile(window, blocks):
        halves = []
        for block in w.blocks:
            first, second = 2 * block, 2 * block + 1
            halves += {"attention": [first], "mlp": [second], "block": [first, second]}[w.part(block)]
        assert halves == list(range(w.start, w.stop))


@given(depths.flatmap(lambda blocks: st.tuples(st.just(blocks), fitting(blocks))))
def test_no_two_windows_share_a_name(case):
    blocks, window = case
    names = [w.name for w in tile(window, blocks)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("window", "names"),
    [
        ("attention_mlp", ["0.attention", "0.mlp", "1.attention", "1.mlp", "2.attention", "2.mlp"]),
        ("block", ["0", "1", "2"]),
        (2, ["0-1", "2"]),
        (3, ["0-2"]),
    ],
)
def test_windows_are_named_after_their_blocks(window, names):
    assert [w.name for w in tile(window, 3)] == names


def test_the_last_window_is_shorter_where_the_depth_is_no_multiple():
    assert tile(3, 7)[-1] == Window(2, 12, 14)
    assert [list(w.blocks) for w in tile(3, 7)] == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_window_as_large_as_the_model_is_one_window():
    assert tile(5, 5) == [Window(0, 0, 10)]


def test_a_window_larger_than_the_model_is_refused():
    with pytest.raises(FreelunchError, match="a window of 6 blocks is larger than the model, which has 5"):
        tile(6, 5)


@pytest.mark.parametrize("wrong", [0, 1, -2, True, False, 2.0, "2", "", "blocks", "Block", "attention", None, [2]])
def test_what_is_no_window_is_refused_with_what_is(wrong):
    with pytest.raises(
        FreelunchError, match="allowed: attention_mlp, block, or a number of blocks from 2 up"
    ) as caught:
        parse_window(wrong)
    assert repr(wrong) in str(caught.value)
