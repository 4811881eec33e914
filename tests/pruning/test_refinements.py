"""Refinements equal their definitions worked row by row in float64, keep what the pattern says, and make it better."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.pruning import relative_error
from freelunch.errors import FreelunchError
from freelunch.pruning import hessian
from freelunch.pruning.matrix import Matrix, Pruned, Statistics
from freelunch.pruning.method import parse_method
from freelunch.pruning.patterns import parse_pattern
from freelunch.pruning.pruner import prune_matrix, refined
from freelunch.pruning.refinements import ADMM, REFINEMENTS, Bias, DSnoT, Exact

NAMES = ("none", *REFINEMENTS.names)
ROWS, COLUMNS, TOKENS = 5, 12, 60
PRUNED = {"50%": 30, "37%": 22, "50% per matrix": 30, "2:4": 30, "1:3": 40}
ANY = parse_pattern("50%")


def random_inputs(seed=0, tokens=TOKENS, columns=COLUMNS):
    """Strongly correlated, of different loudness, and with means that are not 0."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(tokens, 3, generator=generator) @ torch.randn(3, columns, generator=generator)
    inputs = shared + 0.5 * torch.randn(tokens, columns, generator=generator)
    return (inputs + torch.randn(columns, generator=generator)) * torch.logspace(-0.3, 0.3, columns)


def random_matrix(seed=0, rows=ROWS, columns=COLUMNS, tokens=TOKENS, dtype=torch.float32, bias=False, inputs=None):
    """A matrix, and the inputs ``[tokens, columns]`` in float64 that its statistics are of."""
    inputs = (random_inputs(seed, tokens, columns) if inputs is None else inputs).double()
    generator = torch.Generator().manual_seed(1000 + seed)
    weight = torch.randn(rows, columns, generator=generator).to(dtype)
    found = Statistics(len(inputs), inputs.sum(0), inputs.square().sum(0), (inputs.T @ inputs).to(dtype))
    return Matrix("m", weight, found, torch.randn(rows, generator=generator).to(dtype) if bias else None), inputs


def random_mask(seed=0, rows=ROWS, columns=COLUMNS, density=0.5):
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(2000 + seed)) < density


def wanda_mask(matrix, pattern, pruned):
    return prune(matrix, "wanda", pattern, "none", pruned).mask


def prune(matrix, criterion, pattern, refinement, pruned=None):
    return prune_matrix(
        parse_method(criterion, pattern, "uniform", refinement), matrix, PRUNED[pattern] if pruned is None else pruned
    )


def damped_loss(matrix, inputs, weight, damping=0.01):
    """``||X (W - V)^T||^2`` plus what damping adds, in float64: of every row."""
    lost = (matrix.weight.double() - weight.double()).tolist()
    strength = damping * float(inputs.square().sum(0).mean())
    return [
        math.fsum((x @ row).square().item() for x in inputs) + strength * float(row.square().sum())
        for row in torch.tensor(lost, dtype=torch.float64)
    ]


def same(one, other):
    return torch.equal(one.mask, other.mask) and torch.equal(one.weight, other.weight)


# --- exact -----------------------------------------------------------------------------------------------------------


def literal_exact(weight, inputs, mask, damping):
    """Least squares of every row on the inputs that it keeps; damping is a further token for each input."""
    strength = inputs.square().sum(0).mean() * damping
    extra = torch.diag((strength + (~inputs.any(0)).double()).sqrt())
    tokens = torch.cat([inputs, extra])
    found = torch.zeros(weight.shape, dtype=torch.float64)
    for row, kept, new in zip(weight.double(), mask, found, strict=True):
        if kept.any():
            new[kept] = torch.linalg.lstsq(tokens[:, kept], (tokens @ row).unsqueeze(1)).solution.squeeze(1)
    return found


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9)),
    seed=st.integers(0, 10**6),
    tokens=st.integers(1, 20),
    density=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_exact_is_least_squares_for_every_shape_and_mask(shape, seed, tokens, density):
    matrix, inputs = random_matrix(seed, *shape, tokens, torch.float64)
    mask = random_mask(seed, *shape, density)
    found = Exact(0.05).refine(matrix, Pruned(mask, matrix.weight, None), ANY)
    wanted = literal_exact(matrix.weight, inputs, mask, 0.05)
    torch.testing.assert_close(found.weight, wanted, rtol=1e-7, atol=1e-7)


@given(seed=st.integers(0, 10**6), size=st.sampled_from([1e-3, 0.1, 1.0]), density=st.sampled_from([0.3, 0.8]))
@settings(max_examples=40, deadline=None)
def test_no_other_weights_of_the_mask_lose_less_than_exact_ones(seed, size, density):
    matrix, inputs = random_matrix(seed % 10, dtype=torch.float64)
    mask = random_mask(seed, density=density)
    best = Exact().refine(matrix, Pruned(mask, matrix.weight, None), ANY).weight
    change = size * torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed)).double() * mask
    ones, others = (damped_loss(matrix, inputs, weight) for weight in (best, best + change))
    for one, other, changed in zip(ones, others, mask.any(1), strict=True):
        assert one < other if changed else one == other


def test_exact_leaves_rows_that_keep_nothing_at_zero_and_rows_that_keep_all_as_they_are():
    matrix, inputs = random_matrix()
    mask = random_mask()
    mask[1], mask[3] = False, True
    found = Exact().refine(matrix, Pruned(mask, matrix.weight, None), ANY)
    assert not found.weight[1].any()
    torch.testing.assert_close(found.weight[3], matrix.weight[3])
    torch.testing.assert_close(
        found.weight, literal_exact(matrix.weight, inputs, mask, 0.01).float(), rtol=1e-3, atol=1e-3
    )
    nothing = Exact().refine(matrix, Pruned(torch.zeros_like(mask), matrix.weight, None), ANY)
    assert nothing.weight.shape == matrix.weight.shape and not nothing.weight.any()


@pytest.mark.parametrize("chunk", [1, 60, 150, 400])
def test_exact_solves_rows_in_chunks_that_change_nothing(monkeypatch, chunk):
    module = importlib.import_module("freelunch.pruning.refinements")
    matrix, _ = random_matrix(rows=11)
    mask = random_mask(rows=11)
    mask[:3] = False  # a chunk of nothing
    pruned = Pruned(mask, matrix.weight, None)
    whole = Exact().refine(matrix, pruned, ANY).weight
    sizes, solve = [], hessian.factorised
    monkeypatch.setattr(module, "_CHUNK", chunk)
    monkeypatch.setattr(hessian, "factorised", lambda systems: sizes.append(len(systems)) or solve(systems))
    parts = Exact().refine(matrix, pruned, ANY).weight
    assert sum(sizes) == 11 and max(sizes) == max(1, chunk // int(mask.sum(1).max()) ** 2) and len(sizes) > 1
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


def test_exact_copes_with_dead_inputs():
    inputs = random_inputs()
    inputs[:, [0, 7]] = 0
    matrix, inputs = random_matrix(inputs=inputs)
    mask = random_mask()
    mask[:2, 0] = True
    found = Exact().refine(matrix, Pruned(mask, matrix.weight, None), ANY)
    torch.testing.assert_close(
        found.weight, literal_exact(matrix.weight, inputs, mask, 0.01).float(), rtol=1e-3, atol=1e-3
    )


def test_exact_takes_the_damping_that_the_factorisation_takes(caplog):
    gram = torch.full((COLUMNS, COLUMNS), 1.005)
    gram.fill_diagonal_(1.0)
    matrix = Matrix("m", random_matrix()[0].weight, Statistics(1, gram[0], gram[0], gram))
    pruned = Pruned(random_mask(), matrix.weight, None)
    found = Exact(1e-4).refine(matrix, pruned, ANY).weight
    assert "trying 0.01" in caplog.text
    torch.testing.assert_close(found, Exact(0.01).refine(matrix, pruned, ANY).weight, rtol=1e-3, atol=1e-3)


def test_exact_copes_with_hardly_any_damping():
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(4, 50, generator=generator) * 10 ** (3 * torch.rand(50, generator=generator))
        gram = inputs.T @ inputs
        matrix, _ = random_matrix(seed, 6, 50)
        matrix = Matrix("m", matrix.weight, Statistics(4, inputs.sum(0), inputs.square().sum(0), gram))
        pruned = Pruned(random_mask(seed, 6, 50, 0.8), matrix.weight, None)
        assert bool(Exact(5e-8).refine(matrix, pruned, ANY).weight.isfinite().all())


@pytest.mark.parametrize("pattern", PRUNED)
def test_exact_beats_the_update_of_sparsegpt_for_its_own_mask(pattern):
    for seed in range(3):
        matrix, inputs = random_matrix(seed)
        updated = prune(matrix, "sparsegpt", pattern, "none")
        best = prune(matrix, "sparsegpt", pattern, "exact")
        assert torch.equal(updated.mask, best.mask)
        ones, others = (damped_loss(matrix, inputs, each.weight) for each in (best, updated))
        assert sum(ones) < sum(others)
        for one, other in zip(ones, others, strict=True):
            assert one <= other * (1 + 1e-4)
        assert relative_error(matrix, best) < relative_error(matrix, updated)


# --- admm ------------------------------------------------------------------------------------------------------------


def literal_admm(weight, inputs, mask, start, iterations, rho, damping):
    """Scaled inputs have norm 1; ``V`` minimises the loss near ``Z - U``, and ``Z`` is ``V + U`` under the mask."""
    hessian = inputs.T @ inputs
    hessian += damping * hessian.diagonal().mean() * torch.eye(len(hessian)).double()
    norms = hessian.diagonal().sqrt()
    scaled = torch.diag(1 / norms) @ hessian @ torch.diag(1 / norms)
    found = torch.zeros(weight.shape, dtype=torch.float64)
    for i, row in enumerate(weight.double() * norms):
        z = start[i].double() * norms * mask[i]
        u = torch.zeros_like(z)
        for _ in range(iterations):
            v = torch.linalg.solve(scaled + rho * torch.eye(len(z)).double(), scaled @ row + rho * (z - u))
            z = (v + u) * mask[i]
            u = u + v - z
        found[i] = z / norms
    return found


@pytest.mark.parametrize(
    ("iterations", "rho", "damping"), [(1, 1.0, 0.01), (3, 1.0, 0.01), (7, 0.3, 0.1), (20, 1.0, 0.01)]
)
def test_admm_is_its_definition(iterations, rho, damping):
    for seed in range(3):
        matrix, inputs = random_matrix(seed)
        start = matrix.weight + 0.3 * random_matrix(seed + 50)[0].weight
        mask = random_mask(seed)
        found = ADMM(iterations, rho, damping).refine(matrix, Pruned(mask, start, None), ANY)
        wanted = literal_admm(matrix.weight, inputs, mask, start, iterations, rho, damping)
        torch.testing.assert_close(found.weight, wanted.float(), rtol=1e-3, atol=1e-3)
        assert torch.equal(found.mask, mask) and found.bias is None


@pytest.mark.parametrize("density", [0.3, 0.7])
def test_admm_lies_between_the_mask_alone_and_exact_and_approaches_exact(density):
    for seed in range(3):
        matrix, inputs = random_matrix(seed, dtype=torch.float64)
        mask = random_mask(seed, density=density)
        pruned = Pruned(mask, matrix.weight, None)
        alone, best = matrix.weight * mask, Exact().refine(matrix, pruned, ANY).weight
        tries = [ADMM(iterations).refine(matrix, pruned, ANY).weight for iterations in (5, 20, 100, 1000)]
        losses = [sum(damped_loss(matrix, inputs, each)) for each in (alone, *tries, best)]
        assert losses[0] > losses[1] > losses[2] > losses[3] > losses[4] * (1 - 1e-9)
        assert losses[4] >= losses[5] * (1 - 1e-9)
        distances = [float((each - best).norm()) for each in tries]
        assert distances == sorted(distances, reverse=True) and distances[-1] < 0.02 * distances[0]


def test_admm_copes_with_dead_inputs_and_rows_that_keep_nothing():
    inputs = random_inputs()
    inputs[:, [0, 7]] = 0
    matrix, _ = random_matrix(inputs=inputs)
    mask = random_mask()
    mask[1] = False
    pruned = Pruned(mask, matrix.weight, None)
    found = ADMM(500).refine(matrix, pruned, ANY).weight
    assert not found[1].any()
    torch.testing.assert_close(found, Exact().refine(matrix, pruned, ANY).weight, rtol=0.02, atol=0.02)


def test_admm_depends_on_the_loudness_of_no_input():
    # scaled inputs are all alike: a unit of length is of no account, but for damping
    matrix, inputs = random_matrix(dtype=torch.float64)
    units = torch.logspace(-1, 1, COLUMNS).double()
    other, _ = random_matrix(dtype=torch.float64, inputs=inputs * units)
    other = Matrix("m", matrix.weight / units, other.inputs)
    mask = random_mask()
    one, two = (
        ADMM(10, damping=1e-12).refine(each, Pruned(mask, each.weight, None), ANY).weight for each in (matrix, other)
    )
    torch.testing.assert_close(one, two * units, rtol=1e-4, atol=1e-6)


# --- dsnot -----------------------------------------------------------------------------------------------------------


def literal_dsnot(weight, inputs, mask, cycles, threshold, size):
    """Section 3 of arXiv 2310.08915 in loops: one row, one cycle, one weight at a time."""
    x = inputs.double()
    mean, variance, norm = x.mean(0).tolist(), x.var(0).tolist(), x.square().sum(0).sqrt().tolist()
    kept, swaps = mask.tolist(), 0
    for w, keep in zip(weight.double().tolist(), kept, strict=True):
        for _ in range(cycles):
            error = math.fsum(w[j] * mean[j] for j in range(len(w)) if not keep[j])
            if abs(error) <= threshold:
                break
            sign = math.copysign(1, error)
            swap, most = None, 0.0
            for start in range(0, len(w), size):
                group = range(start, start + size)
                growing = [j for j in group if not keep[j] and variance[j] > 0]
                falling = [j for j in group if keep[j] and sign * w[j] * mean[j] < 0]
                if growing and falling:
                    grow = max(growing, key=lambda j: sign * w[j] * mean[j] / variance[j])
                    drop = min(falling, key=lambda j: abs(w[j]) * norm[j])
                    if sign * w[grow] * mean[grow] / variance[grow] > most:
                        most, swap = sign * w[grow] * mean[grow] / variance[grow], (grow, drop)
            if swap is None:
                break
            grow, drop = swap
            if abs(error - w[grow] * mean[grow] + w[drop] * mean[drop]) >= abs(error):
                break
            keep[grow], keep[drop] = True, False
            swaps += 1
    return torch.tensor(kept), swaps


def expected_errors(matrix, mask):
    return (matrix.weight.double() * ~mask) @ matrix.inputs.means


def group_of(pattern):
    return int(pattern.split(":")[1]) if ":" in pattern else COLUMNS


@pytest.mark.parametrize(("cycles", "threshold"), [(50, 0.1), (1, 0.1), (2, 0.01), (50, 0.0), (50, 0.5)])
@pytest.mark.parametrize("pattern", PRUNED)
def test_dsnot_is_its_definition(pattern, cycles, threshold):
    swaps = 0
    for seed in range(4):
        matrix, inputs = random_matrix(seed)
        mask = wanda_mask(matrix, pattern, PRUNED[pattern])
        found = prune(matrix, "wanda", pattern, f"dsnot(cycles={cycles}, threshold={threshold})")
        wanted, some = literal_dsnot(matrix.weight, inputs, mask, cycles, threshold, group_of(pattern))
        swaps += some
        assert torch.equal(found.mask, wanted) and torch.equal(found.weight, matrix.weight)
    assert swaps > 3


@given(
    rows=st.integers(1, 5),
    seed=st.integers(0, 10**6),
    cycles=st.integers(1, 30),
    threshold=st.sampled_from([0.0, 0.1, 1.0]),
    pattern=st.sampled_from(["50%", "2:4", "4:6"]),
    density=st.sampled_from([0.1, 0.5, 0.9]),
)
@settings(max_examples=80, deadline=None)
def test_dsnot_is_its_definition_for_every_mask_and_never_makes_an_error_larger(
    rows, seed, cycles, threshold, pattern, density
):
    matrix, inputs = random_matrix(seed, rows, dtype=torch.float64)
    mask = random_mask(seed, rows, density=density)
    before = mask.clone()
    found = DSnoT(cycles, threshold).refine(matrix, Pruned(mask, matrix.weight, None), parse_pattern(pattern)).mask
    size = group_of(pattern)
    assert torch.equal(found, literal_dsnot(matrix.weight, inputs, before, cycles, threshold, size)[0])
    assert torch.equal(found.view(rows, -1, size).sum(2), mask.view(rows, -1, size).sum(2))
    assert bool((expected_errors(matrix, found).abs() <= expected_errors(matrix, mask).abs() + 1e-12).all())
    assert torch.equal(mask, before)


def test_dsnot_revives_no_weight_of_a_constant_input():
    inputs = random_inputs()
    inputs[:, 4] = 64.0
    matrix, inputs = random_matrix(inputs=inputs)
    mask = random_mask()
    mask[:, 4] = False
    found = DSnoT().refine(matrix, Pruned(mask, matrix.weight, None), ANY).mask
    assert not found[:, 4].any()
    assert torch.equal(found, literal_dsnot(matrix.weight, inputs, mask, 50, 0.1, COLUMNS)[0])


# --- bias ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("refinement", ["bias", "exact + bias", "admm + bias", "dsnot + bias"])
@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt"])
def test_with_bias_the_expected_output_is_that_of_the_dense_layer(criterion, refinement, has_bias):
    for seed in range(2):
        matrix, inputs = random_matrix(seed, bias=has_bias)
        found = prune(matrix, criterion, "50%", refinement)
        before = prune(matrix, criterion, "50%", refinement.removesuffix("bias").removesuffix(" + ") or "none")
        dense = matrix.bias.double() if has_bias else torch.zeros(ROWS).double()
        outputs = inputs @ matrix.weight.double().T + dense
        kept = (found.weight * found.mask).double()
        torch.testing.assert_close((inputs @ kept.T + found.bias).mean(0), outputs.mean(0), rtol=1e-4, atol=1e-4)
        assert not torch.allclose((inputs @ kept.T + dense).mean(0), outputs.mean(0), rtol=1e-2, atol=1e-2)
        assert same(found, before) and found.bias.shape == (ROWS,) and found.bias.dtype == torch.float32


def test_bias_is_the_mean_of_what_is_pruned_whatever_lies_under_the_mask():
    matrix, inputs = random_matrix()
    mask = random_mask()
    means = inputs.mean(0).tolist()
    literal = [
        math.fsum(w * mean for w, mean, keep in zip(row, means, kept, strict=True) if not keep)
        for row, kept in zip(matrix.weight.tolist(), mask.tolist(), strict=True)
    ]
    for weight in (matrix.weight, matrix.weight * mask, torch.where(mask, matrix.weight, 99.0)):
        found = Bias().refine(matrix, Pruned(mask, weight, None), ANY).bias
        torch.testing.assert_close(found, torch.tensor(literal), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("has_bias", [False, True])
def test_outputs_that_are_pruned_as_a_whole_get_no_bias(has_bias):
    matrix, _ = random_matrix(bias=has_bias)
    mask = random_mask()
    mask[[0, 3]] = False
    before = matrix.bias.clone() if has_bias else torch.zeros(ROWS)
    found = Bias().refine(matrix, Pruned(mask, matrix.weight, matrix.bias), ANY).bias
    assert torch.equal(found[[0, 3]], before[[0, 3]]) and bool((found[[1, 2, 4]] != before[[1, 2, 4]]).all())
    assert matrix.bias is None or torch.equal(matrix.bias, before)


# --- one after the other ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PRUNED)
@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "ria", "sparsegpt", "flap", "random"])
def test_every_refinement_goes_with_every_criterion_and_pattern(criterion, pattern):
    matrix, _ = random_matrix(2, bias=True)
    dense = matrix.weight.clone()
    for refinement in (*NAMES, "dsnot + exact", "dsnot + admm(iterations=5) + bias", "exact + bias"):
        found = prune(matrix, criterion, pattern, refinement)  # checks the mask
        assert int((~found.mask).sum()) == PRUNED[pattern] and bool(found.weight.isfinite().all())
        assert torch.equal(matrix.weight, dense)


def test_refinements_come_in_the_order_they_are_written_in():
    matrix, inputs = random_matrix()
    swapped = prune(matrix, "wanda", "50%", "dsnot").mask
    assert not torch.equal(swapped, wanda_mask(matrix, "50%", 30))
    found = prune(matrix, "wanda", "50%", "dsnot + exact")
    assert torch.equal(found.mask, swapped)
    torch.testing.assert_close(
        found.weight, literal_exact(matrix.weight, inputs, swapped, 0.01).float(), rtol=1e-3, atol=1e-3
    )
    with pytest.raises(FreelunchError, match=r"exact \+ dsnot': dsnot starts from dense weights, so it comes first"):
        prune(matrix, "wanda", "50%", "exact + dsnot")


def test_refinements_that_give_no_finite_weights_are_reported_with_their_matrix():
    matrix, _ = random_matrix()
    bad = Pruned(random_mask(), torch.full_like(matrix.weight, float("nan")), None)
    with pytest.raises(FreelunchError, match=r"^m: the updated weights contain NaN or infinity"):
        refined(parse_method("wanda", "50%", "uniform", "bias"), matrix, bad)
    matrix.inputs.gram[0, 1] = float("nan")
    for refinement in ("exact", "admm"):
        with pytest.raises(FreelunchError, match=r"^m: the Gram matrix of its inputs contains NaN"):
            prune(matrix, "wanda", "50%", refinement)


# --- what is written in a config -------------------------------------------------------------------------------------
