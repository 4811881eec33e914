"""Patterns: exact counts, deterministic ties, and what is no pattern."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from freelunch.errors import FreelunchError
from freelunch.patterns import NM, Pattern, Unstructured, parse_pattern

shapes = st.tuples(st.integers(1, 7), st.integers(1, 24))
seeds = st.integers(0, 2**31 - 1)
levels = st.sampled_from([1, 2, 5, 0])  # how many different scores there are (1: all tied); 0: as many as weights
percents = st.decimals(0, 99, places=2).map(lambda value: f"{value.normalize():f}%")
groups = st.integers(1, 8).flatmap(lambda of: st.tuples(st.integers(1, of), st.just(of)))


def scores_of(shape: tuple[int, int], seed: int, distinct: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if distinct:
        return torch.randint(distinct, shape, generator=generator).float() - 1
    return torch.randn(shape, generator=generator)


def literal_mask(scores: Tensor, pattern: Pattern) -> list[list[bool]]:
    """The definition, in loops: repeatedly drop the first of the lowest scores of each group."""
    rows, columns = scores.shape
    if isinstance(pattern, NM):
        size, count = pattern.of, pattern.of - pattern.keep
    else:
        size = columns if pattern.group == "row" else rows * columns
        count = math.floor(Fraction(str(pattern.sparsity)) * size + Fraction(1, 2))
    flat = scores.flatten().tolist()
    kept = [True] * len(flat)
    for start in range(0, len(flat), size):
        for _ in range(count):
            left = [i for i in range(start, start + size) if kept[i]]
            kept[min(left, key=lambda i: (flat[i], i))] = False
    return [kept[row * columns : (row + 1) * columns] for row in range(rows)]


@given(shapes, seeds, levels, percents)
def test_every_row_loses_exactly_the_percentage_rounded_half_up(shape, seed, distinct, percent):
    rows, columns = shape
    pattern = parse_pattern(percent)
    wanted = math.floor(Fraction(percent[:-1]) * columns / 100 + Fraction(1, 2))
    mask = pattern.mask(scores_of(shape, seed, distinct))
    assert mask.shape == shape and mask.dtype == torch.bool
    assert (~mask).sum(1).tolist() == [wanted] * rows
    assert pattern.pruned(rows, columns) == wanted * rows


@given(shapes, seeds, levels, percents)
def test_the_whole_matrix_loses_exactly_the_percentage_rounded_half_up(shape, seed, distinct, percent):
    rows, columns = shape
    pattern = parse_pattern(f"{percent} per matrix")
    wanted = math.floor(Fraction(percent[:-1]) * rows * columns / 100 + Fraction(1, 2))
    assert int((~pattern.mask(scores_of(shape, seed, distinct))).sum()) == wanted == pattern.pruned(rows, columns)


@given(st.integers(1, 6), st.integers(1, 5), groups, seeds, levels)
def test_every_group_of_m_inputs_keeps_exactly_n(rows, multiple, group, seed, distinct):
    keep, of = group
    pattern = NM(keep, of)
    mask = pattern.mask(scores_of((rows, multiple * of), seed, distinct))
    for start in range(0, multiple * of, of):
        assert mask[:, start : start + of].sum(1).tolist() == [keep] * rows
    assert int((~mask).sum()) == pattern.pruned(rows, multiple * of)


@given(st.integers(1, 5), st.integers(1, 4), seeds, levels, st.one_of(percents, groups))
def test_masks_equal_a_loop_that_drops_the_lowest_one_by_one(rows, multiple, seed, distinct, choice):
    if isinstance(choice, str):
        patterns, columns = [parse_pattern(choice), parse_pattern(f"{choice} per matrix")], 5 * multiple
    else:
        patterns, columns = [NM(*choice)], choice[1] * multiple
    scores = scores_of((rows, columns), seed, distinct)
    for pattern in patterns:
        mask = pattern.mask(scores)
        assert mask.tolist() == literal_mask(scores, pattern)


@given(st.integers(1, 5), seeds, levels, st.sampled_from(["30%", "50% per matrix", "2:4", "1:4"]))
def test_no_pruned_score_is_above_a_kept_one_of_its_group(rows, seed, distinct, text):
    scores = scores_of((rows, 12), seed, distinct)
    pattern = parse_pattern(text)
    size = pattern.of if isinstance(pattern, NM) else (12 if pattern.group == "row" else 12 * rows)
    kept = pattern.mask(scores).reshape(-1, size)
    scores = scores.reshape(-1, size)
    lowest_kept = scores.masked_fill(~kept, float("inf")).amin(1)
    highest_pruned = scores.masked_fill(kept, -float("inf")).amax(1)
    assert bool((lowest_kept >= highest_pruned).all())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("50%", [[0, 0, 0, 0, 1, 1, 1, 1]] * 2),
        ("50% per matrix", [[0] * 8, [1] * 8]),
        ("2:4", [[0, 0, 1, 1, 0, 0, 1, 1]] * 2),
    ],
)
@pytest.mark.parametrize("value", [0.0, -0.0, 3.5])
def test_among_equal_scores_the_earlier_column_goes_first(text, wanted, value):
    assert parse_pattern(text).mask(torch.full((2, 8), value)).int().tolist() == wanted


def test_zero_and_minus_zero_are_a_tie():
    assert parse_pattern("25%").mask(torch.tensor([[0.0, -0.0, 1.0, -0.0]])).tolist() == [[False, True, True, True]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("text", ["50%", "37.5% per matrix", "2:4"])
def test_scores_may_have_any_float_dtype(text, dtype):
    # few mantissa bits make many ties, which a sort that is not stable would break differently
    scores = scores_of((16, 64), 0, 0).to(dtype)
    pattern = parse_pattern(text)
    assert torch.equal(pattern.mask(scores), pattern.mask(scores.double()))
    assert pattern.mask(scores).tolist() == literal_mask(scores.double(), pattern)


def test_making_a_mask_leaves_the_scores_alone():
    scores = scores_of((4, 8), 1, 0)
    before = scores.clone()
    parse_pattern("50%").mask(scores)
    assert torch.equal(scores, before)


@pytest.mark.parametrize("percent", range(0, 100, 10))
def test_ten_columns_lose_exactly_a_tenth_of_the_percentage(percent):
    # 0.7 * 10 is 7.000000000000001 and 0.29 * 100 is 28.999999999999996 in binary
    pattern = parse_pattern(f"{percent}%")
    assert pattern.pruned(1, 10) == percent // 10
    assert parse_pattern("29%").pruned(1, 100) == 29


def test_halves_are_rounded_up():
    assert [parse_pattern("50%").pruned(1, columns) for columns in (1, 3, 5)] == [1, 2, 3]
    assert parse_pattern("50% per matrix").pruned(3, 3) == 5


def test_zero_percent_prunes_nothing_and_n_of_n_keeps_all():
    scores = scores_of((3, 8), 0, 0)
    assert bool(parse_pattern("0%").mask(scores).all()) and bool(parse_pattern("4:4").mask(scores).all())


@given(st.decimals(0, 99, places=3), st.sampled_from(["row", "matrix"]))
def test_what_a_percentage_prints_as_is_read_back(percent, group):
    pattern = parse_pattern(f"{percent:f}% per {group}")
    assert parse_pattern(str(pattern)) == pattern


@pytest.mark.parametrize("text", ["66.66666667%", "12.345678% per matrix", "0.00001%"])
def test_a_percentage_of_many_digits_is_read_back_too(text):
    pattern = parse_pattern(text)
    assert parse_pattern(str(pattern)) == pattern


@given(groups)
def test_what_a_group_pattern_prints_as_is_read_back(group):
    pattern = NM(*group)
    assert parse_pattern(str(pattern)) == pattern
    assert pattern.sparsity == pytest.approx(1 - group[0] / group[1])


def test_equal_percentages_written_differently_are_one_pattern():
    assert len({parse_pattern(text) for text in ("50%", "50.0%", " 50.00% ", "50% per row")}) == 1
    assert parse_pattern("50%") != parse_pattern("50% per matrix")
    assert parse_pattern("50%") == Unstructured(0.5)


def test_slugs_of_different_patterns_differ():
    texts = ["50%", "50% per matrix", "2:4", "4:8", "50.5%", "5%"]
    slugs = {parse_pattern(text).slug for text in texts}
    assert len(slugs) == len(texts)
    assert all(set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-") for slug in slugs)


@pytest.mark.parametrize(
    "wrong",
    [
        124, 0.5, None, True, ["50%"],
        "", "50", "0.5", "%", "fifty%", "50 %%", "120%", "-5%", "100%", "nan%", "1e1%", "50% per column",
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


@pytest.mark.parametrize(("text", "allowed"), [("100%", "below 100%"), ("120%", "below 100%"), ("5:4", "0 < N <= M")])
def test_what_is_allowed_is_said(text, allowed):
    with pytest.raises(FreelunchError, match=allowed):
        parse_pattern(text)


def test_a_width_that_groups_do_not_divide_is_refused_with_the_matrix():
    with pytest.raises(FreelunchError, match=r"2:4: the 6 inputs of model\.layers\.3\.q_proj are not a multiple of 4"):
        NM(2, 4).check(8, 6, "model.layers.3.q_proj")
    with pytest.raises(FreelunchError, match="6 inputs"):
        NM(2, 4).mask(torch.ones(4, 6))  # 24 weights would reshape into groups that straddle rows
    NM(2, 4).check(6, 8, "x")
    Unstructured(0.5).check(3, 7, "x")
