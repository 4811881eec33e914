"""Windows: a tiling has no gap and no overlap, and every window is called by what it covers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freelunch.errors import FreelunchError
from freelunch.recover.windows import (
    BlockMatrices,
    Window,
    canonical_targets,
    check_targets,
    completed,
    parse_window,
    targeted,
    tile,
)

depths = st.integers(1, 60)


# blocks whose matrices differ in number and in order, as in a model that has an ungated MLP here and there
GATED = BlockMatrices(
    ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    key="attn.k_proj", up="mlp.up_proj",
)  # fmt: skip
UNGATED = BlockMatrices(("attn.k_proj", "attn.q_proj", "fc1", "fc2"), key="attn.k_proj", up="fc1")
INSIDE = [GATED, UNGATED, GATED]


def fitting(blocks: int) -> st.SearchStrategy:
    names = st.sampled_from(["attention_mlp", "block", "model"])
    return names if blocks < 2 else st.one_of(names, st.integers(2, blocks))


@given(depths.flatmap(lambda blocks: st.tuples(st.just(blocks), fitting(blocks))))
def test_a_tiling_covers_every_half_block_once_and_in_order(case):
    blocks, window = case
    windows = tile(window, blocks)
    assert [half for w in windows for half in range(w.start, w.stop)] == list(range(2 * blocks))
    assert [w.index for w in windows] == list(range(len(windows)))
    size = parse_window(window) or 2 * blocks
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
        ("model", ["0-2"]),
    ],
)
def test_windows_are_named_after_their_blocks(window, names):
    assert [w.name for w in tile(window, 3)] == names


def test_a_window_larger_than_the_model_is_refused():
    with pytest.raises(FreelunchError, match="a window of 6 blocks is larger than the model, which has 5"):
        tile(6, 5)


@pytest.mark.parametrize("wrong", [0, 1, -2, True, False, 2.0, "2", "", "blocks", "Block", "attention", None, [2]])
def test_what_is_no_window_is_refused_with_what_is(wrong):
    allowed = "allowed: matrix, matrix_exact, key_up, attention_mlp, block, model, or a number of blocks from 2 up"
    with pytest.raises(FreelunchError, match=allowed) as caught:
        parse_window(wrong)
    assert repr(wrong) in str(caught.value)


# --- all blocks, and single matrices ---------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [1, 2, 7])
def test_the_whole_model_is_one_window(blocks):
    (window,) = tile("model", blocks)
    assert window == Window(0, 0, 2 * blocks) and list(window.blocks) == list(range(blocks))
    assert [window.part(block) for block in window.blocks] == ["block"] * blocks
    assert window.name == ("0" if blocks == 1 else f"0-{blocks - 1}")


@pytest.mark.parametrize("kind", ["matrix", "matrix_exact"])
def test_every_matrix_is_a_window_in_the_order_of_calls(kind):
    windows = tile(kind, 3, INSIDE)
    assert [w.index for w in windows] == list(range(7 + 4 + 7))
    assert [(list(w.blocks), w.matrices) for w in windows] == [
        ([block], (name,)) for block, inside in enumerate(INSIDE) for name in inside.names
    ]
    for w in windows:
        assert (w.start, w.stop) == (2 * w.blocks[0], 2 * w.blocks[0] + 2) and w.part(w.blocks[0]) == "matrices"
    assert [w.name for w in windows][6:9] == ["0.mlp.down_proj", "1.attn.k_proj", "1.attn.q_proj"]
    assert len({w.name for w in windows}) == len(windows)


def test_windows_of_matrices_that_are_no_targets_are_left_out():
    windows = tile("matrix", 3, INSIDE, "k_proj + fc2")
    assert [w.name for w in windows] == ["0.attn.k_proj", "1.attn.k_proj", "1.fc2", "2.attn.k_proj"]
    assert [w.index for w in windows] == [0, 1, 2, 3]
    names = [name for block in INSIDE for name in block.names]
    check_targets(names, "k_proj + fc2")
    check_targets(names, "all")
    with pytest.raises(FreelunchError, match=r"there is no matrix 'kproj'; did you mean 'k_proj'\? allowed: .*fc2"):
        check_targets(names, "fc2 + kproj")


def test_key_and_up_projection_are_one_window_a_block():
    windows = tile("key_up", 3, INSIDE)
    assert [w.matrices for w in windows] == [("attn.k_proj", "mlp.up_proj"), ("attn.k_proj", "fc1"),
                                             ("attn.k_proj", "mlp.up_proj")]  # fmt: skip
    assert [(w.index, w.start, w.stop, w.name) for w in windows] == [
        (0, 0, 2, "0.key_up"), (1, 2, 4, "1.key_up"), (2, 4, 6, "2.key_up"),
    ]  # fmt: skip
    assert [w.part(w.blocks[0]) for w in windows] == ["matrices"] * 3


# --- which blocks are done --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "done"),
    [
        ("attention_mlp", [[], [0], [], [1], [], [2]]),
        ("block", [[0], [1], [2]]),
        (2, [[0, 1], [2]]),
        ("model", [[0, 1, 2]]),
        ("key_up", [[0], [1], [2]]),
        ("matrix", [[]] * 6 + [[0]] + [[]] * 3 + [[1]] + [[]] * 6 + [[2]]),
    ],
)
def test_a_block_is_completed_by_its_last_window(kind, done):
    windows = tile(kind, 3, INSIDE)
    assert [completed(windows, at) for at in range(len(windows))] == done


def test_a_part_of_the_windows_completes_its_blocks_too():
    windows = tile("attention_mlp", 4)[4:6]
    assert [completed(windows, at) for at in (0, 1)] == [[], [2]]


@given(depths.flatmap(lambda blocks: st.tuples(st.just(blocks), fitting(blocks))))
def test_every_block_is_completed_once_and_in_order(case):
    blocks, window = case
    windows = tile(window, blocks)
    assert [block for at in range(len(windows)) for block in completed(windows, at)] == list(range(blocks))


# --- targets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("all", "all"),
        (" all ", "all"),
        ("q_proj", "q_proj"),
        ("v_proj+q_proj", "q_proj + v_proj"),
        ("q_proj + fc1 +q_proj", "fc1 + q_proj"),
    ],
)
def test_targets_are_sorted_and_named_once(text, canonical):
    assert canonical_targets(text) == canonical == canonical_targets(canonical)


@pytest.mark.parametrize(
    "wrong", ["", " ", "+", "q_proj +", "q-proj", "mlp.fc1", "q_proj, v_proj", "all + fc1", None, 3]
)
def test_what_names_no_matrices_is_refused(wrong):
    with pytest.raises(FreelunchError, match=r"names no matrices; write all, or names joined by \+ such as") as caught:
        canonical_targets(wrong)
    assert repr(wrong) in str(caught.value)


def test_a_target_is_the_last_part_of_a_name():
    assert targeted("model.layers.0.mlp.up_proj", "all") and targeted("fc1", "all")
    assert targeted("model.layers.0.mlp.up_proj", "down_proj + up_proj") and targeted("up_proj", "up_proj")
    # neither parts of parts nor parts in the middle
    assert not targeted("mlp.gate_up_proj", "up_proj") and not targeted("mlp.up_proj", "mlp")
    assert not targeted("mlp.up", "up_proj") and not targeted("all.up_proj", "down_proj")
