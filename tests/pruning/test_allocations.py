"""Allocations equal their definitions worked out by hand or in loops, and whole counts add up."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from freelunch.errors import FreelunchError
from freelunch.pruning.allocations import (
    ERK,
    LAMP,
    OWL,
    Allocation,
    Given,
    Uniform,
    apportion,
    lamp_scores,
    parse_allocation,
)
from freelunch.pruning.criteria.magnitude import Magnitude
from freelunch.pruning.criteria.wanda import Wanda
from freelunch.pruning.matrix import Matrices, Matrix, Statistics
from freelunch.pruning.method import parse_method
from freelunch.pruning.patterns import NM, Unstructured, parse_pattern
from freelunch.pruning.pruner import allocate

quickly = settings(deadline=None, max_examples=60)
seeds = st.integers(0, 2**31 - 1)
ragged = st.lists(
    st.lists(st.tuples(st.integers(1, 13), st.integers(1, 13)), min_size=1, max_size=3), min_size=1, max_size=4
)


def network(blocks: list[list[tuple[int, ...]]], seed: int = 0) -> Matrices:
    """Random matrices with the inputs that they read, block by block; in every other block some weights stand out."""
    generator = torch.Generator().manual_seed(seed)
    shapes, where, found = {}, {}, {}
    for block, inside in enumerate(blocks):
        for index, shape in enumerate(inside):
            name = f"{block}.{index}"
            shapes[name], where[name] = shape, block
            weight = torch.randn(shape, generator=generator).pow(2 * (block % 2) + 1)
            inputs = torch.randn(6, shape[1], generator=generator) * torch.rand(shape[1], generator=generator)
            inputs = inputs.double()
            found[name] = Matrix(
                name, weight, Statistics(6, inputs.sum(0), inputs.square().sum(0), gram=(inputs.T @ inputs).float())
            )
    return Matrices(shapes, where, found.__getitem__)


def shaped(*shapes: tuple[int, ...]) -> Matrices:
    """Matrices of which only the shapes may be looked at."""

    def load(name: str) -> Matrix:
        raise AssertionError(f"{name} was loaded")

    names = "abcdefgh"[: len(shapes)]
    return Matrices(dict(zip(names, shapes, strict=True)), dict.fromkeys(names, 0), load)


# --- whole numbers ---------------------------------------------------------------------------------------------------


@st.composite
def feasible(draw: st.DrawFn) -> tuple[dict[str, float], dict[str, int], int]:
    """Targets within their limits that add up to a whole number, to within what floats do."""
    sizes = {str(name): size for name, size in enumerate(draw(st.lists(st.integers(1, 500), min_size=1, max_size=8)))}
    shares = [draw(st.floats(0, 1)) for _ in sizes]
    targets = {name: size * share for (name, size), share in zip(sizes.items(), shares, strict=True)}
    total = draw(st.sampled_from([math.floor, math.ceil]))(sum(targets.values()))
    # moved to the whole number: one by one, as far as limits let
    for name in targets:
        change = total - math.fsum(targets.values())
        targets[name] = min(max(targets[name] + change, 0.0), float(sizes[name]))
    assume(abs(math.fsum(targets.values()) - total) < 1e-9)
    return targets, sizes, total


@quickly
@given(feasible())
def test_targets_that_add_up_are_met_to_within_one_weight_and_exactly_in_all(case):
    targets, sizes, total = case
    counts = apportion(targets, sizes, total, dict.fromkeys(sizes, 1))
    assert list(counts) == list(targets) and sum(counts.values()) == total
    assert all(type(count) is int and 0 <= count <= sizes[name] for name, count in counts.items())
    assert all(abs(counts[name] - targets[name]) < 1 + 1e-6 for name in counts)


@quickly
@given(feasible())
def test_largest_remainders_go_up_first(case):
    targets, sizes, total = case
    counts = apportion(targets, sizes, total, dict.fromkeys(sizes, 1))
    up = [targets[name] - math.floor(targets[name]) for name in counts if counts[name] > targets[name] + 1e-6]
    down = [targets[name] - math.floor(targets[name]) for name in counts if counts[name] < targets[name] - 1e-6]
    assert not up or not down or min(up) >= max(down) - 1e-6


@quickly
@given(st.lists(st.tuples(st.integers(1, 300), st.floats(-500, 500)), min_size=1, max_size=8), st.floats(0, 1))
def test_any_targets_give_exactly_the_total_within_limits(pairs, share):
    sizes = {str(name): size for name, (size, _) in enumerate(pairs)}
    targets = {str(name): target for name, (_, target) in enumerate(pairs)}
    total = round(share * sum(sizes.values()))
    counts = apportion(targets, sizes, total, dict.fromkeys(sizes, 1))
    assert sum(counts.values()) == total
    assert all(0 <= count <= sizes[name] for name, count in counts.items())


def test_what_limits_do_not_let_in_is_spread_over_the_room_that_is_left():
    sizes, steps = {"a": 10, "b": 100, "c": 300}, {"a": 1, "b": 1, "c": 1}
    # 50 too many for a; b has room for 80 and c for 120
    assert apportion({"a": 60, "b": 20, "c": 180}, sizes, 260, steps) == {"a": 10, "b": 40, "c": 210}
    # 30 too few for a: what b and c have gives way in proportion
    assert apportion({"a": -30, "b": 20, "c": 180}, sizes, 170, steps) == {"a": 0, "b": 17, "c": 153}


def test_large_counts_are_exact():
    sizes = {str(name): 4096 * 11008 + name for name in range(300)}
    total = Unstructured(0.7).pruned(sum(sizes.values()))
    targets = {name: 0.7 * size for name, size in sizes.items()}
    counts = apportion(targets, sizes, total, dict.fromkeys(sizes, 1))
    assert sum(counts.values()) == total
    assert all(abs(counts[name] - Fraction(7, 10) * size) <= 1 for name, size in sizes.items())


@quickly
@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(-0.5, 1.5)), min_size=1, max_size=8),
    st.integers(1, 8).flatmap(lambda of: st.tuples(st.integers(1, of), st.just(of))),
)
def test_with_n_to_m_counts_are_whole_steps_that_leave_at_least_one(pairs, group):
    pattern = NM(*group)
    steps = {str(name): step for name, (step, _) in enumerate(pairs)}
    sizes = {name: step * pattern.of for name, step in steps.items()}
    targets = {str(name): share * step * pattern.of for name, (step, share) in enumerate(pairs)}
    total = pattern.pruned(sum(sizes.values()))
    counts = apportion(targets, sizes, total, steps, keep=True)
    for name, count in counts.items():
        assert count % steps[name] == 0 and 0 <= pattern.of - count // steps[name] <= pattern.of
        assert pattern.of - count // steps[name] >= 1
    # the last step taken halves what is missing at least: nearer than half the largest step
    assert abs(sum(counts.values()) - total) <= max(steps.values()) / 2


@quickly
@given(st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=9), st.integers(1, 50), st.integers(2, 8), st.data())
def test_with_equal_steps_n_to_m_adds_up_exactly(shares, step, of, data):
    pattern = NM(data.draw(st.integers(1, of)), of)
    names = [str(name) for name in range(len(shares))]
    sizes, steps = dict.fromkeys(names, step * of), dict.fromkeys(names, step)
    total = pattern.pruned(sum(sizes.values()))
    targets = {name: share * step * of for name, share in zip(names, shares, strict=True)}
    assert sum(apportion(targets, sizes, total, steps, keep=True).values()) == total


def test_without_keep_a_matrix_may_lose_everything():
    targets, sizes, steps = {"a": 8.0, "b": 0.0}, {"a": 8, "b": 8}, {"a": 2, "b": 2}
    assert apportion(targets, sizes, 8, steps) == {"a": 8, "b": 0}
    assert apportion(targets, sizes, 8, steps, keep=True) == {"a": 6, "b": 2}


def test_counts_that_are_too_many_step_down_again():
    # 5 of 8 in steps of 8: nearer than none
    assert apportion({"a": 5.0}, {"a": 32}, 5, {"a": 8}) == {"a": 8}
    assert apportion({"a": 3.0}, {"a": 32}, 3, {"a": 8}) == {"a": 0}
    # 8 are 2 too many, one step of 2 back is exact
    assert apportion({"a": 6.0, "b": 4.0}, {"a": 32, "b": 8}, 10, {"a": 8, "b": 2}) == {"a": 8, "b": 2}


# --- uniform ---------------------------------------------------------------------------------------------------------


def test_uniform_looks_at_no_weights_and_is_exact_where_it_can_be():
    matrices = shaped((8, 8), (4, 8), (8, 16))
    assert Uniform().targets(matrices, 112) == {"a": 32, "b": 16, "c": 64}
    for text in ("50%", "50% per matrix", "2:4"):
        assert allocate(Magnitude(), parse_pattern(text), Uniform(), matrices) == {"a": 32, "b": 16, "c": 64}
    assert allocate(Magnitude(), NM(1, 4), Uniform(), matrices) == {"a": 48, "b": 24, "c": 96}


# --- ERK -------------------------------------------------------------------------------------------------------------


def kept_of(method: ERK, matrices: Matrices, pruned: float) -> list[float]:
    targets = method.targets(matrices, pruned)
    assert list(targets) == list(matrices.shapes)
    return [matrices.sizes[name] - target for name, target in targets.items()]


def test_erk_caps_the_density_of_every_matrix():
    # without a cap the first would keep 81.8 %
    matrices = shaped((10, 10), (20, 20), (10, 40))
    kept = kept_of(ERK(cap=0.6), matrices, 450)
    assert kept == pytest.approx([60, 390 * 40 / 90, 390 * 50 / 90])
    # and a cap that is the density makes it uniform
    assert kept_of(ERK(cap=0.5), matrices, 450) == pytest.approx([50, 200, 200])


@quickly
@given(
    st.lists(st.lists(st.integers(1, 30), min_size=2, max_size=4).map(tuple), min_size=1, max_size=8),
    st.floats(0, 1), st.floats(0.05, 1),
)  # fmt: skip
def test_erk_is_the_one_scale_that_keeps_what_must_be_kept_under_the_cap(shapes, share, cap):
    matrices = shaped(*shapes)
    sizes, scores = list(matrices.sizes.values()), [sum(shape) for shape in shapes]
    left = share * cap * sum(sizes)
    low, high = 0.0, float(sum(sizes))
    for _ in range(200):  # bisection
        middle = (low + high) / 2
        kept = [min(cap * size, middle * score) for size, score in zip(sizes, scores, strict=True)]
        low, high = (middle, high) if sum(kept) < left else (low, middle)
    assert kept_of(ERK(cap), matrices, sum(sizes) - left) == pytest.approx(kept, rel=1e-6, abs=1e-6)


def test_a_cap_below_the_density_is_refused():
    for text in ("50%", "50% per matrix", "2:4"):
        with pytest.raises(
            FreelunchError,
            match=r"^allocation erk\(cap=0\.4\): no matrix may keep more than 0\.4, but 0\.5 must be kept$",
        ):
            parse_method("magnitude", text, "erk(cap=40%)", "none").check(3)
        parse_method("magnitude", text, "erk(cap=50%)", "none").check(3)


# --- LAMP ------------------------------------------------------------------------------------------------------------


def literal_lamp(weight: torch.Tensor) -> list[float]:
    """The definition of arXiv 2010.07611, section 3.1, with weights indexed in ascending order of magnitude."""
    ascending = sorted(abs(value) for value in weight.double().flatten().tolist())
    return [ascending[u] ** 2 / sum(value**2 for value in ascending[u:]) for u in range(len(ascending))]


@quickly
@given(seeds, st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_lamp_scores_are_those_of_the_paper(seed, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).pow(3)
    found = lamp_scores(weight).tolist()
    assert found == pytest.approx(literal_lamp(weight), rel=1e-12)
    assert found == sorted(found) and found[-1] == 1


@quickly
@given(ragged, seeds, st.floats(0, 1))
def test_lamp_counts_are_those_of_one_global_threshold(blocks, seed, share):
    matrices = network(blocks, seed)
    # a layer must survive: as many weights are kept as there are matrices
    pruned = round(share * (sum(matrices.sizes.values()) - len(matrices.shapes)))
    scores = [(score, name) for name in matrices.shapes for score in literal_lamp(matrices.load(name).weight)]
    scores.sort(key=lambda pair: pair[0])
    if pruned:  # in float32, scores this near to the threshold may change places
        assume(scores[pruned][0] - scores[pruned - 1][0] > 1e-6 * scores[pruned][0] or scores[pruned - 1][0] == 1)
    gone = [name for _, name in scores[:pruned]]
    targets = LAMP().targets(matrices, pruned)
    assert targets == {name: gone.count(name) for name in matrices.shapes}
    assert all(targets[name] < size for name, size in matrices.sizes.items())  # each keeps one at least


# --- OWL -------------------------------------------------------------------------------------------------------------


def literal_ratios(matrices: Matrices, outlier: float) -> dict[int, float]:
    ratios = {}
    for block in sorted(set(matrices.blocks.values())):
        scores = []
        for matrix in (matrices.load(name) for name in matrices.shapes if matrices.blocks[name] == block):
            norms = [math.sqrt(square) for square in matrix.inputs.squared_norms.tolist()]
            scores += [abs(w) * norms[j] for row in matrix.weight.tolist() for j, w in enumerate(row)]
        mean = sum(scores) / len(scores)
        ratios[block] = sum(score > outlier * mean for score in scores) / len(scores)
    return ratios


BLOCKS: list[list[tuple[int, ...]]] = [[(12, 10), (7, 9)], [(20, 11)], [(5, 6), (8, 16), (3, 3)], [(9, 9)]]


@pytest.mark.parametrize("outlier", [2.0, 5.0])
@pytest.mark.parametrize("seed", range(3))
def test_owl_gives_blocks_with_more_outliers_more_density(seed, outlier):
    matrices, method = network(BLOCKS, seed), OWL(0.1, outlier)
    ratios = literal_ratios(matrices, outlier)
    assert len(set(ratios.values())) > 1
    total = sum(matrices.sizes.values())
    targets = method.targets(matrices, 0.6 * total)
    low, high = min(ratios.values()), max(ratios.values())
    raised = {block: 2 * 0.1 * (ratio - low) / (high - low) for block, ratio in ratios.items()}
    mean = sum(raised[matrices.blocks[name]] * size for name, size in matrices.sizes.items()) / total
    for name, size in matrices.sizes.items():
        density = 1 - targets[name] / size
        assert density == pytest.approx(0.4 + raised[matrices.blocks[name]] - mean)


@quickly
@given(ragged, seeds, st.floats(0.01, 0.3), st.floats(1, 4), st.floats(0.3, 0.7))
def test_owl_densities_have_a_range_of_two_lambda_around_the_mean_of_the_pattern(
    blocks, seed, width, outlier, sparsity
):
    matrices = network(blocks, seed)
    total = sum(matrices.sizes.values())
    targets = OWL(width, outlier).targets(matrices, sparsity * total)
    assert sum(targets.values()) == pytest.approx(sparsity * total)
    shares = {name: target / matrices.sizes[name] for name, target in targets.items()}
    by_block: dict[int, list[float]] = {}
    for name, share in shares.items():
        by_block.setdefault(matrices.blocks[name], []).append(share)
    for inside in by_block.values():
        assert inside == pytest.approx([inside[0]] * len(inside))
    ratios = literal_ratios(matrices, outlier)
    span = max(shares.values()) - min(shares.values())
    assert span == pytest.approx(2 * width if len(set(ratios.values())) > 1 else 0, abs=1e-9)


# --- given -----------------------------------------------------------------------------------------------------------


def test_given_sparsities_are_those_of_the_blocks_in_turn():
    matrices = shaped((8, 10), (4, 5), (10, 10))
    matrices = Matrices(matrices.shapes, {"a": 3, "b": 3, "c": 7}, matrices.load)
    assert Given((0.25, 0.75)).targets(matrices, 100) == {"a": 20, "b": 5, "c": 75}
    assert allocate(Magnitude(), Unstructured(0.5), Given((0.25, 0.75)), matrices) == {"a": 20, "b": 5, "c": 75}
    grouped = Matrices({"a": (8, 8), "b": (8, 8)}, {"a": 0, "b": 1}, matrices.load)
    assert allocate(Magnitude(), NM(2, 4), Given((0.25, 0.75)), grouped) == {"a": 16, "b": 48}


@pytest.mark.parametrize("pattern", ["50%", "50% per matrix", "2:4", "50% structured"])
def test_a_list_of_the_wrong_length_or_mean_is_refused(pattern):
    parse_method("magnitude", pattern, "given(25%, 50%, 75%)", "none").check(3)
    with pytest.raises(
        FreelunchError, match=r"^allocation given\(.*\): it lists 3 sparsities, the model has 4 blocks$"
    ):
        parse_method("magnitude", pattern, "given(40%, 45%, 65%)", "none").check(4)
    with pytest.raises(FreelunchError, match=r"^allocation given: it lists 0 sparsities, the model has 4 blocks$"):
        parse_method("magnitude", pattern, "given", "none").check(4)
    with pytest.raises(
        FreelunchError, match=r"^allocation given\(.*\): its sparsities have the mean 48\.33%, the pattern 50%$"
    ):
        parse_method("magnitude", pattern, "given(40%, 45%, 60%)", "none").check(3)


def test_a_mean_may_be_off_by_what_rounding_brings_about():
    # thirds in tenths of a percent
    parse_method("magnitude", "33.33333333%", "given(33.3%, 33.3%, 33.3%)", "none").check(3)
    with pytest.raises(FreelunchError, match=r"33\.2%, the pattern 33\.33%"):
        parse_method("magnitude", "33.33333333%", "given(33.2%, 33.2%, 33.2%)", "none").check(3)


# --- Repairability -----------------------------------------------------------------------------------------------


def centred(name: str, weight: list[list[float]], variances: list[float]) -> Matrix:
    """A matrix whose inputs are uncorrelated, with mean 0."""
    none, squares = torch.zeros(len(variances), dtype=torch.float64), 10 * torch.tensor(variances).double()
    return Matrix(name, torch.tensor(weight), Statistics(10, none, squares, gram=squares.diag().float()))


def test_repairability_equals_a_case_worked_out_by_hand():
    # half of the weights go: both lose their 1; outputs vary by 9 + 1 = 10 and 4 + 1 = 5, pruned ones by 9 and 4
    found = {"a": centred("a", [[3.0, 1]], [1, 1]), "b": centred("b", [[2.0, 1]], [1, 1])}
    matrices = Matrices({"a": (1, 2), "b": (1, 2)}, {"a": 0, "b": 0}, found.__getitem__)
    # raw distortion is 1 in both; matched it is 2 v - 2 sqrt(v u), with v dense and u pruned variances
    ratios = {"a": 2 * (10 - 90**0.5), "b": 2 * (5 - 20**0.5)}
    kept = {name: 2 * 2 * ratio / (2 * sum(ratios.values())) for name, ratio in ratios.items()}
    targets = parse_allocation("repairability").targets(matrices, 2)
    assert targets == pytest.approx({name: 2 - found for name, found in kept.items()}, rel=1e-5)


def test_repairability_asks_for_gram_matrices_before_anything_is_pruned():
    for text, needed in (("repairability", True), ("erk", False)):
        method = parse_method("magnitude", "50%", text, "none")
        assert method.needs_gram == method.needs_gram_first == needed
    assert parse_method("sparsegpt", "50%", "erk", "none").needs_gram
    assert not parse_method("sparsegpt", "50%", "erk", "none").needs_gram_first
    assert parse_method("sparsegpt", "50% global", "uniform", "none").needs_gram_first


# --- all of them -----------------------------------------------------------------------------------------------------

ALL = ["uniform", "erk", "erk(cap=0.97)", "lamp", "owl", "owl(lambda=0.3, outlier=2)", "repairability", "given"]


def allocation_of(text: str, blocks: int, sparsity: float) -> Allocation:
    if text != "given":
        return parse_allocation(text)
    # by turns above and below; an odd block out has the mean
    swing = min(sparsity, 1 - sparsity) / 2
    return Given(tuple(sparsity + swing * (-1) ** block * (block < blocks // 2 * 2) for block in range(blocks)))


@pytest.mark.parametrize("group", ["row", "matrix"])
@pytest.mark.parametrize("text", ALL)
@settings(deadline=None, max_examples=25)
@given(blocks=ragged, seed=seeds, percent=st.decimals(5, 95, places=1))
def test_every_allocation_prunes_exactly_what_the_pattern_asks_for(text, group, blocks, seed, percent):
    pattern, matrices = parse_pattern(f"{percent:f}% per {group}"), network(blocks, seed)
    allocation = allocation_of(text, len(blocks), pattern.sparsity)
    counts = allocate(Wanda(), pattern, allocation, matrices)
    assert list(counts) == list(matrices.shapes)
    size = sum(matrices.sizes.values())
    assert sum(counts.values()) == math.floor(Fraction(f"{percent:f}") * size / 100 + Fraction(1, 2))
    for matrix in matrices:
        mask = pattern.mask(Wanda().scores(matrix), counts[matrix.name])
        assert int((~mask).sum()) == counts[matrix.name] and pattern.fits(mask, counts[matrix.name])


@pytest.mark.parametrize("text", ALL)
@settings(deadline=None, max_examples=25)
@given(blocks=ragged, seed=seeds, group=st.sampled_from([(2, 4), (1, 4), (4, 8), (5, 8), (1, 2)]))
def test_every_allocation_may_mix_values_of_n(text, blocks, seed, group):
    pattern = NM(*group)
    matrices = network([[(rows, columns * pattern.of) for rows, columns in inside] for inside in blocks], seed)
    allocation = allocation_of(text, len(blocks), pattern.sparsity)
    counts = allocate(Wanda(), pattern, allocation, matrices)
    wanted = sum(matrices.sizes.values()) * (pattern.of - pattern.keep) // pattern.of
    steps = {name: size // pattern.of for name, size in matrices.sizes.items()}
    assert abs(sum(counts.values()) - wanted) <= max(steps.values()) / 2
    for matrix in matrices:
        lost = counts[matrix.name] // steps[matrix.name]
        assert lost * steps[matrix.name] == counts[matrix.name] and lost < pattern.of
        mask = pattern.mask(Wanda().scores(matrix), counts[matrix.name])
        assert (~mask).reshape(-1, pattern.of).sum(1).tolist() == [lost] * steps[matrix.name]
    if text == "uniform":
        assert {counts[name] // step for name, step in steps.items()} == {pattern.of - pattern.keep}


def decoder(blocks: int, width: int, key_value: int, inner: int) -> list[list[tuple[int, ...]]]:
    attention = [(width, width), (key_value, width), (key_value, width), (width, width)]
    return [[*attention, (inner, width), (inner, width), (width, inner)]] * blocks


@pytest.mark.parametrize("sides", [(32, 4096, 1024, 14336), (24, 896, 128, 4864), (12, 768, 768, 3072)], ids=str)
def test_mixed_n_is_near_its_targets_with_the_shapes_of_real_models(sides):
    shapes = {f"{b}.{i}": shape for b, block in enumerate(decoder(*sides)) for i, shape in enumerate(block)}
    matrices = Matrices(shapes, {name: int(name.split(".")[0]) for name in shapes}, lambda name: NotImplemented)
    total = sum(matrices.sizes.values()) // 2
    targets = ERK().targets(matrices, total)
    counts = allocate(Magnitude(), NM(2, 4), ERK(), matrices)
    assert sum(counts.values()) == total
    assert all(abs(counts[name] - targets[name]) <= size / 4 + 1 for name, size in matrices.sizes.items())


@quickly
@given(ragged, seeds, st.decimals(0, 99, places=1))
def test_one_threshold_over_the_model_is_counted_on_the_scores_of_the_criterion(blocks, seed, percent):
    matrices, pattern = network(blocks, seed), parse_pattern(f"{percent:f}% global")
    scores = [(s, matrix.name) for matrix in matrices for s in Wanda().score(matrix).flatten().tolist()]
    gone = [name for _, name in sorted(scores, key=lambda pair: pair[0])[: pattern.pruned(len(scores))]]
    counts = allocate(Wanda(), pattern, Uniform(), matrices)
    assert counts == {name: gone.count(name) for name in matrices.shapes}


@pytest.mark.parametrize("text", ["erk", "erk(cap=0.9)", "lamp"])
def test_structured_patterns_need_an_allocation_by_block(text):
    with pytest.raises(
        FreelunchError, match=r"20% structured prunes .* together; use uniform, owl or given$"
    ) as caught:
        parse_method("wanda", "20% structured", text, "none").check(3)
    assert f"allocation {text} gives the matrices of a block different sparsities" in str(caught.value)
    for allowed in ("uniform", "owl", "given(10%, 20%, 30%)"):
        parse_method("wanda", "20% structured", allowed, "none").check(3)


def test_a_matrix_that_the_pattern_does_not_fit_is_named_before_anything_is_loaded():
    with pytest.raises(FreelunchError, match=r"2:4: the 6 inputs of b are not a multiple of 4"):
        allocate(Magnitude(), NM(2, 4), LAMP(), shaped((3, 8), (4, 6)))
