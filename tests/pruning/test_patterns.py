"""Patterns: exact counts, deterministic ties, and what is no pattern."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from freelunch.errors import FreelunchError
from freelunch.pruning.patterns import NM, Structured, Unstructured, parse_pattern

quickly = settings(deadline=None, max_examples=100)
shapes = st.tuples(st.integers(1, 7), st.integers(1, 24))
seeds = st.integers(0, 2**31 - 1)
levels = st.sampled_from([1, 2, 5, 0])  # how many different scores there are (1: all tied); 0: as many as weights
percents = st.decimals(0, 99, places=2).map(lambda value: f"{value.normalize():f}%")
groups = st.integers(1, 12).flatmap(lambda of: st.tuples(st.integers(1, of), st.just(of)))


def scores_of(shape: tuple[int, int], seed: int, distinct: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if distinct:
        return torch.randint(distinct, shape, generator=generator).float() - 1
    return torch.randn(shape, generator=generator)


def literal_mask(scores: Tensor, pattern: Unstructured | NM, pruned: int) -> list[list[bool]]:
    """The definition, in loops: drop the first of the lowest scores, one by one, of each group."""
    rows, columns = scores.shape
    flat = scores.flatten().tolist()
    kept = [True] * len(flat)

    def lowest(start: int, size: int) -> int:
        return min((i for i in range(start, start + size) if kept[i]), key=lambda i: (flat[i], i))

    if isinstance(pattern, NM):
        for start in range(0, len(flat), pattern.of):
            for _ in range(pruned * pattern.of // len(flat)):
                kept[lowest(start, pattern.of)] = False
    elif pattern.group == "row":
        lost = [0] * rows
        for _ in range(pruned):
            # rows take turns: none loses a second weight before all have lost a first
            turn = [row for row in range(rows) if lost[row] == min(lost)]
            following = [(flat[lowest(row * columns, columns)], row) for row in turn]
            row = min(following)[1]
            kept[lowest(row * columns, columns)] = False
            lost[row] += 1
    else:
        for _ in range(pruned):
            kept[lowest(0, len(flat))] = False
    return [kept[row * columns : (row + 1) * columns] for row in range(rows)]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Unstructured | NM, int]:
    """Scores, a pattern that fits them, and how many of them go."""
    rows, columns = draw(shapes)
    choice = draw(st.one_of(st.sampled_from(["row", "matrix", "model"]), groups))
    if isinstance(choice, str):
        pattern: Unstructured | NM = Unstructured(0.5, choice)
        pruned = draw(st.integers(0, rows * columns))
    else:
        pattern, columns = NM(*choice), choice[1] * draw(st.integers(1, 4))
        # an allocation may give a matrix another keep
        pruned = draw(st.integers(0, pattern.of)) * pattern.step(rows * columns)
    return scores_of((rows, columns), draw(seeds), draw(levels)), pattern, pruned


@quickly
@given(cases())
def test_masks_equal_a_loop_that_drops_the_lowest_one_by_one(case):
    scores, pattern, pruned = case
    mask = pattern.mask(scores, pruned)
    assert mask.dtype == torch.bool and mask.tolist() == literal_mask(scores, pattern, pruned)
    assert pattern.fits(mask, pruned)


@quickly
@given(shapes, seeds, levels, st.data())
def test_rows_differ_by_one_at_most_and_those_whose_next_score_is_lowest_lose_more(shape, seed, distinct, data):
    rows, columns = shape
    pruned = data.draw(st.integers(0, rows * columns))
    scores = scores_of(shape, seed, distinct)
    lost = (~Unstructured(0.5).mask(scores, pruned)).sum(1).tolist()
    base, extra = divmod(pruned, rows)
    assert sorted(lost) == [base] * (rows - extra) + [base + 1] * extra
    if extra:
        following = [(sorted(row)[base], index) for index, row in enumerate(scores.tolist())]
        assert [index for index in range(rows) if lost[index] > base] == sorted(
            at for _, at in sorted(following)[:extra]
        )
        assert Unstructured(0.5).quotas(scores, pruned).tolist() == lost


def test_the_matrix_is_one_group_of_its_own_and_in_the_model():
    scores = scores_of((3, 5), 0, 0)
    for group in ("matrix", "model"):
        assert Unstructured(0.5, group).quotas(scores, 7).tolist() == [7]
        assert torch.equal(Unstructured(0.5, group).mask(scores, 7), Unstructured(0.5, "matrix").mask(scores, 7))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("50%", [[0, 0, 0, 0, 1, 1, 1, 1]] * 2),
        ("50% per matrix", [[0] * 8, [1] * 8]),
        ("50% global", [[0] * 8, [1] * 8]),
        ("2:4", [[0, 0, 1, 1, 0, 0, 1, 1]] * 2),
    ],
)
@pytest.mark.parametrize("value", [0.0, -0.0, 3.5])
def test_among_equal_scores_the_earlier_column_goes_first(text, wanted, value):
    assert parse_pattern(text).mask(torch.full((2, 8), value), 8).int().tolist() == wanted


@pytest.mark.parametrize("text", ["25%", "25% per matrix", "3:4"])
def test_zero_and_minus_zero_are_a_tie(text):
    mask = parse_pattern(text).mask(torch.tensor([[0.0, -0.0, 1.0, -0.0]]), 1)
    assert mask.tolist() == [[False, True, True, True]]
    # as are the next scores of rows
    assert Unstructured(0.5).quotas(torch.tensor([[0.0, 1.0], [-0.0, 1.0]]), 1).tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("text", "pruned"), [("50%", 500), ("37.5% per matrix", 381), ("2:4", 512)])
def test_scores_may_have_any_float_dtype(text, pruned, dtype):
    # few mantissa bits make many ties, which a sort that is not stable would break differently
    scores = scores_of((16, 64), 0, 0).to(dtype)
    pattern = parse_pattern(text)
    assert torch.equal(pattern.mask(scores, pruned), pattern.mask(scores.double(), pruned))
    assert pattern.mask(scores, pruned).tolist() == literal_mask(scores.double(), pattern, pruned)


@pytest.mark.parametrize("text", ["50%", "50% per matrix", "2:4"])
def test_scores_may_lie_in_memory_in_any_order(text):
    scores, pattern = scores_of((8, 8), 2, 0), parse_pattern(text)
    pruned = 32 if text == "2:4" else 29
    assert torch.equal(pattern.mask(scores.T, pruned), pattern.mask(scores.T.contiguous(), pruned))
    wide = scores_of((8, 16), 2, 0)[:, ::2]
    assert torch.equal(pattern.mask(wide, pruned), pattern.mask(wide.contiguous(), pruned))


@pytest.mark.parametrize("text", ["50%", "50% per matrix", "2:4"])
def test_making_a_mask_leaves_the_scores_alone(text):
    scores = scores_of((4, 8), 1, 0)
    before = scores.clone()
    parse_pattern(text).mask(scores, 16)
    assert torch.equal(scores, before)


@pytest.mark.parametrize(
    ("pattern", "lost", "fits"),
    [
        (Unstructured(0.5), [[1, 1, 0, 0], [0, 1, 1, 0]], True),
        (Unstructured(0.5), [[1, 1, 1, 0], [0, 1, 0, 0]], False),  # rows differ by two
        (Unstructured(0.5), [[1, 1, 1, 0], [0, 1, 1, 0]], False),  # five
        (Unstructured(0.5), [[1, 1, 0, 0], [0, 1, 0, 0]], False),  # three
        (Unstructured(0.5, "matrix"), [[1, 1, 1, 1], [0, 0, 0, 0]], True),
        (Unstructured(0.5, "model"), [[1, 1, 1, 1], [0, 0, 0, 0]], True),
        (Unstructured(0.5, "model"), [[1, 1, 1, 1], [0, 0, 0, 1]], False),
        (NM(2, 4), [[1, 0, 0, 1], [0, 1, 1, 0]], True),
        (NM(1, 4), [[1, 0, 0, 1], [0, 1, 1, 0]], True),  # the count is the allocation's
        (NM(2, 4), [[1, 1, 0, 1], [0, 1, 0, 0]], False),
        (NM(2, 4), [[1, 0, 0, 0], [0, 1, 0, 0]], False),
        (NM(1, 2), [[1, 1, 0, 0], [0, 1, 1, 0]], False),
    ],
)  # fmt: skip
def test_a_mask_fits_if_its_count_and_its_spread_are_right(pattern, lost, fits):
    assert pattern.fits(~torch.tensor(lost, dtype=torch.bool), 4) is fits


def test_a_count_that_is_no_whole_number_per_group_is_refused():
    with pytest.raises(FreelunchError, match=r"^pattern 2:4: 5 of 16 weights is no whole number per 4$"):
        NM(2, 4).mask(torch.ones(2, 8), 5)
    assert [NM(2, 4).per_group(16, pruned) for pruned in (0, 4, 8, 12, 16)] == [0, 1, 2, 3, 4]


@quickly
@given(st.one_of(percents, st.decimals(0, 99, places=5).map(lambda value: f"{value:f}%")), st.integers(0, 10**10))
def test_counts_are_the_percentage_of_the_size_rounded_half_up(percent, size):
    wanted = math.floor(Fraction(percent[:-1]) * size / 100 + Fraction(1, 2))
    for form in ("", " per matrix", " global", " structured", " structured global"):
        assert parse_pattern(percent + form).pruned(size) == wanted


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4), NM(4, 4), NM(3, 5)], ids=str)
def test_group_patterns_count_what_every_group_loses(pattern):
    size = 7 * pattern.of
    assert pattern.pruned(size) == 7 * (pattern.of - pattern.keep)
    assert pattern.step(size) == 7 and Unstructured(0.5).step(size) == 1


def test_no_weights_pruned_keeps_all_and_all_pruned_keeps_none():
    scores = scores_of((3, 8), 0, 0)
    for text in ("0%", "0% per matrix", "0% global", "4:4"):
        pattern = parse_pattern(text)
        assert pattern.pruned(24) == 0 and bool(pattern.mask(scores, 0).all())
        assert not bool(pattern.mask(scores, 24).any())


@quickly
@given(
    st.decimals(0, 99, places=3),
    st.sampled_from(["", " per row", " per matrix", " global", " structured", " structured global"]),
)
def test_what_a_percentage_prints_as_is_read_back(percent, form):
    pattern = parse_pattern(f"{percent:f}%{form}")
    assert parse_pattern(str(pattern)) == pattern
    assert str(parse_pattern(str(pattern))) == str(pattern)
    assert pattern.sparsity == float(percent / 100)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("50%", Unstructured(0.5)),
        ("50% per row", Unstructured(0.5, "row")),
        ("62.5% per matrix", Unstructured(0.625, "matrix")),
        ("70% global", Unstructured(0.7, "model")),
        ("2:4", NM(2, 4)),
        ("20% structured", Structured(0.2)),
        (" 12.5% structured global ", Structured(0.125, "model")),
    ],
)
def test_every_form_stands_for_its_pattern(text, pattern):
    assert parse_pattern(text) == pattern
    assert str(pattern) == text.strip().replace(" per row", "")


@quickly
@given(groups)
def test_what_a_group_pattern_prints_as_is_read_back(group):
    pattern = NM(*group)
    assert parse_pattern(str(pattern)) == pattern
    assert pattern.sparsity == pytest.approx(1 - group[0] / group[1])


def test_equal_percentages_written_differently_are_one_pattern():
    assert len({parse_pattern(text) for text in ("50%", "50.0%", " 50.00% ", "50% per row")}) == 1
    forms = ("", " per matrix", " global", " structured", " structured global")
    assert len({parse_pattern(f"50%{form}") for form in forms}) == len(forms)
    assert parse_pattern("50%") == Unstructured(0.5)


def test_slugs_of_different_patterns_differ():
    texts = [
        "50%",
        "50% per matrix",
        "50% global",
        "50% structured",
        "50% structured global",
        "2:4",
        "4:8",
        "50.5%",
        "5%",
    ]
    slugs = {parse_pattern(text).slug for text in texts}
    assert len(slugs) == len(texts)
    assert all(set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-") for slug in slugs)


@pytest.mark.parametrize(
    "wrong",
    [
        124, 0.5, None, True, ["50%"],
        "", "50", "0.5", "%", "fifty%", "50 %%", "120%", "-5%", "100%", "nan%", "1e1%", "50% per column",
        "50% structured per row", "50% per block", "50% structured  global", "50% global structured", "structured",
        "global", "100% structured", "101% global", "-5% structured", "99.99999999999999999999%",
        "0:4", "5:4", "0:0", "2:4:8", "2:", ":4", "-2:4", "2.0:4", "2 of 4",
    ],
)  # fmt: skip
def test_what_is_no_pattern_is_refused_and_shown(wrong):
    with pytest.raises(FreelunchError) as caught:
        parse_pattern(wrong)
    assert repr(wrong) in str(caught.value)


def test_the_number_yaml_makes_of_two_to_four_is_explained():
    with pytest.raises(FreelunchError, match="in quotes") as caught:
        parse_pattern(124)  # 2:4 without quotes is 2 * 60 + 4 in YAML 1.1
    assert '"2:4"' in str(caught.value)


def test_a_width_that_groups_do_not_divide_is_refused_with_the_matrix():
    with pytest.raises(FreelunchError, match=r"2:4: the 6 inputs of model\.layers\.3\.q_proj are not a multiple of 4"):
        NM(2, 4).check(8, 6, "model.layers.3.q_proj")
    with pytest.raises(FreelunchError, match="6 inputs"):
        NM(2, 4).mask(torch.ones(4, 6), 12)  # 24 weights would reshape into groups that straddle rows
    NM(2, 4).check(6, 8, "x")
    Unstructured(0.5).check(3, 7, "x")
    Structured(0.5).check(3, 7, "x")
