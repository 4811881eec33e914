"""Criteria equal their definitions written as loops in float64, whatever the batches, the dtype and the row order."""

from __future__ import annotations

import hashlib
import logging
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks.pruning import relative_error
from freelunch.errors import FreelunchError
from freelunch.pruning.criteria import CRITERIA, parse_criterion
from freelunch.pruning.criteria.sparsegpt import SparseGPT
from freelunch.pruning.matrix import Matrix, Pruned, Statistics
from freelunch.pruning.method import parse_method
from freelunch.pruning.patterns import parse_pattern
from freelunch.pruning.pruner import check_mask, prune_matrix
from freelunch.pruning.statistics import Collector

ROWS, COLUMNS, TOKENS = 5, 12, 40
PRUNED = {"50%": 30, "37%": 22, "50% per matrix": 30, "37% per matrix": 22, "2:4": 30, "1:3": 40, "4:6": 20}
"""Patterns, and how many weights of 5 x 12 they prune; 22 is no multiple of 5."""
NAMES = CRITERIA.names
DETERMINISTIC = [name for name in NAMES if name != "random"]


def random_inputs(seed=0, tokens=TOKENS, columns=COLUMNS):
    """Correlated, of different loudness, and with means that are not 0."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return (mixed + torch.randn(columns, generator=generator)) * torch.logspace(-0.7, 0.7, columns)


def random_weight(seed=0, rows=ROWS, columns=COLUMNS):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1000 + seed))


def matrix_of(weight, inputs, name="m", **more):
    """A matrix with the statistics of some inputs ``[tokens, columns]``, in the dtype of the weight."""
    inputs = inputs.double()
    gram = (inputs.T @ inputs).to(weight)
    return Matrix(name, weight, Statistics(len(inputs), inputs.sum(0), inputs.square().sum(0), gram), **more)


def prune(criterion, pattern, matrix, pruned=None):
    method = parse_method(criterion, pattern, "uniform", "none")
    return prune_matrix(method, matrix, PRUNED[pattern] if pruned is None else pruned)


# --- the definitions, as loops ---------------------------------------------------------------------------------------


def literal_scores(name, weight, inputs):
    w, x = weight.double().tolist(), inputs.double().tolist()
    rows, columns, tokens = len(w), len(w[0]), len(x)
    norm = [math.sqrt(math.fsum(x[t][j] ** 2 for t in range(tokens))) for j in range(columns)]
    mean = [math.fsum(x[t][j] for t in range(tokens)) / tokens for j in range(columns)]
    variance = [math.fsum((x[t][j] - mean[j]) ** 2 for t in range(tokens)) / (tokens - 1) for j in range(columns)]
    row = [math.fsum(abs(w[i][j]) for j in range(columns)) for i in range(rows)]
    column = [math.fsum(abs(w[i][j]) for i in range(rows)) for j in range(columns)]
    factor = literal_factor(inputs, 0.01).tolist() if name == "sparsegpt" else None
    formulas = {
        "magnitude": lambda i, j: abs(w[i][j]),
        "wanda": lambda i, j: abs(w[i][j]) * norm[j],
        "ria": lambda i, j: (abs(w[i][j]) / column[j] + abs(w[i][j]) / row[i]) * norm[j] ** 0.5,
        "ria(alpha=1)": lambda i, j: (abs(w[i][j]) / column[j] + abs(w[i][j]) / row[i]) * norm[j],
        "flap": lambda i, j: variance[j] * w[i][j] ** 2,
        "sparsegpt": lambda i, j: w[i][j] ** 2 / factor[j][j] ** 2,
    }
    return [[formulas[name](i, j) for j in range(columns)] for i in range(rows)]


def literal_quotas(scores, pruned):
    """Of every row: all the same, and one more where the next to go has the lowest score."""
    base, extra = divmod(pruned, len(scores))
    following = sorted((sorted(row)[base] if base < len(row) else 0, i) for i, row in enumerate(scores))
    return [base + (i in [i for _, i in following[:extra]]) for i in range(len(scores))]


def lowest(scores, count):
    """Positions of the lowest of some scores, the earlier of equal ones first."""
    return sorted(range(len(scores)), key=lambda at: (scores[at], at))[:count]


def literal_mask(scores, pattern, pruned):
    rows, columns = len(scores), len(scores[0])
    kept = [[True] * columns for _ in range(rows)]
    if ":" in pattern:
        of = int(pattern.split(":")[1])
        for i in range(rows):
            for start in range(0, columns, of):
                for at in lowest(scores[i][start : start + of], pruned // (rows * columns // of)):
                    kept[i][start + at] = False
    elif pattern.endswith("per matrix"):
        for at in lowest([score for row in scores for score in row], pruned):
            kept[at // columns][at % columns] = False
    else:
        for i, quota in enumerate(literal_quotas(scores, pruned)):
            for at in lowest(scores[i], quota):
                kept[i][at] = False
    return torch.tensor(kept)


def literal_factor(inputs, damping):
    """The upper Cholesky factor of the inverse of the damped Hessian."""
    x = inputs.double()
    hessian = x.T @ x
    hessian += damping * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    for j in range(len(hessian)):
        if not x[:, j].any():
            hessian[j, j] = 1
    return torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)


def literal_sparsegpt(weight, inputs, pattern, pruned, block_size=128, damping=0.01):
    """Algorithm 1 of arXiv 2301.00774: every column updates all columns behind it at once."""
    upper = literal_factor(inputs, damping)
    weight = weight.double().clone()
    rows, columns = weight.shape
    quotas = literal_quotas((weight / upper.diagonal()).square().tolist(), pruned)
    weight[:, ~inputs.any(0)] = 0
    kept = torch.ones(rows, columns, dtype=torch.bool)
    for start in range(0, columns, block_size):
        stop = min(start + block_size, columns)
        if ":" not in pattern:
            scores = [[float(weight[i, j] / upper[j, j]) ** 2 for j in range(start, stop)] for i in range(rows)]
            if pattern.endswith("per matrix"):
                share = pruned * stop // columns - pruned * start // columns
                for at in lowest([score for row in scores for score in row], share):
                    kept[at // (stop - start), start + at % (stop - start)] = False
            else:
                for i, quota in enumerate(quotas):
                    for at in lowest(scores[i], quota * stop // columns - quota * start // columns):
                        kept[i, start + at] = False
        for j in range(start, stop):
            if ":" in pattern and j % (of := int(pattern.split(":")[1])) == 0:
                for i in range(rows):
                    scores = [float(weight[i, k] / upper[k, k]) ** 2 for k in range(j, j + of)]
                    for at in lowest(scores, pruned // (rows * columns // of)):
                        kept[i, j + at] = False
            for i in range(rows):
                if not kept[i, j]:
                    weight[i, j:] -= weight[i, j].clone() / upper[j, j] * upper[j, j:]
    return kept, weight * kept


# --- scores and masks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*DETERMINISTIC, "ria(alpha=1)"])
def test_scores_equal_their_definition(name):
    for seed in range(3):
        weight, inputs = random_weight(seed), random_inputs(seed)
        scores = parse_criterion(name).score(matrix_of(weight, inputs))
        assert scores.dtype == torch.float32 and scores.shape == weight.shape
        literal = torch.tensor(literal_scores(name, weight, inputs))
        torch.testing.assert_close(scores, literal, rtol=2e-3 if name == "sparsegpt" else 2e-5, atol=0)


@pytest.mark.parametrize("pattern", PRUNED)
@pytest.mark.parametrize("name", ["magnitude", "wanda", "ria", "ria(alpha=1)", "flap"])
def test_the_lowest_scores_of_the_definition_are_pruned_and_weights_stay(name, pattern):
    for seed in range(3):
        weight, inputs = random_weight(seed), random_inputs(seed)
        found = prune(name, pattern, matrix_of(weight, inputs))
        assert torch.equal(found.mask, literal_mask(literal_scores(name, weight, inputs), pattern, PRUNED[pattern]))
        assert torch.equal(found.weight, weight) and int((~found.mask).sum()) == PRUNED[pattern]


def test_ria_gives_rows_and_columns_of_zeros_no_score_rather_than_none():
    weight = random_weight()
    weight[2], weight[:, 3] = 0, 0
    scores = parse_criterion("ria").scores(matrix_of(weight, random_inputs()))
    assert not scores[2].any() and not scores[:, 3].any()
    rest = [[0, 1, 3, 4], [0, 1, 2, *range(4, COLUMNS)]]
    literal = literal_scores("ria", weight[rest[0]][:, rest[1]], random_inputs()[:, rest[1]])
    torch.testing.assert_close(scores[rest[0]][:, rest[1]], torch.tensor(literal), rtol=1e-5, atol=0)


def test_random_scores_are_the_uniform_numbers_of_the_seed_and_the_name():
    matrix = matrix_of(random_weight(), random_inputs(), name="layers.0.mlp.up_proj", seed=7)
    seed = int(hashlib.sha256(b"7 layers.0.mlp.up_proj").hexdigest()[:14], 16)
    wanted = torch.rand(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(parse_criterion("random").score(matrix), wanted)
    assert torch.equal(prune("random", "37%", matrix).mask, literal_mask(wanted.tolist(), "37%", 22))


# --- SparseGPT -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [1, 3, 5, 12, 128])
@pytest.mark.parametrize("pattern", PRUNED)
def test_sparsegpt_is_algorithm_1(pattern, block_size):
    for seed, damping in enumerate([0.01, 0.1, 0.01]):
        weight, inputs = random_weight(seed), random_inputs(seed)
        found = prune(f"sparsegpt(block_size={block_size}, damping={damping})", pattern, matrix_of(weight, inputs))
        mask, updated = literal_sparsegpt(weight, inputs, pattern, PRUNED[pattern], block_size, damping)
        assert torch.equal(found.mask, mask)
        torch.testing.assert_close(found.weight, updated.float(), rtol=2e-3, atol=2e-3)
        assert not torch.allclose(found.weight, weight * mask, atol=0.05)


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 10)),
    block_size=st.integers(1, 12),
    pattern=st.sampled_from(["50%", "50% per matrix"]),
    seed=st.integers(0, 2**31 - 1),
    tokens=st.integers(1, 15),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_sparsegpt_is_algorithm_1_for_every_shape_block_size_and_count(
    shape, block_size, pattern, seed, tokens, data
):  # fmt: skip
    pruned = data.draw(st.integers(0, shape[0] * shape[1]))
    weight = random_weight(seed % 10**6, *shape).double()
    inputs = random_inputs(seed, tokens, shape[1])
    criterion = SparseGPT(block_size=block_size, damping=0.05)
    # in float64, where no two scores are nearer than rounding
    mask, updated = criterion.prune(matrix_of(weight.clone(), inputs), parse_pattern(pattern), pruned)
    wanted, values = literal_sparsegpt(weight, inputs, pattern, pruned, block_size, 0.05)
    assert torch.equal(mask, wanted) and int((~mask).sum()) == pruned
    torch.testing.assert_close(updated, values, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("pattern", "pruned"), [("2:4", 15), ("2:4", 45), ("2:4", 0), ("1:3", 20), ("4:6", 40)])
@pytest.mark.parametrize("block_size", [5, 128])
def test_sparsegpt_prunes_as_much_of_every_group_as_it_is_told(pattern, pruned, block_size):
    weight, inputs = random_weight(), random_inputs()
    found = prune(f"sparsegpt(block_size={block_size})", pattern, matrix_of(weight, inputs), pruned)
    mask, updated = literal_sparsegpt(weight, inputs, pattern, pruned)
    assert torch.equal(found.mask, mask)
    torch.testing.assert_close(found.weight, updated.float(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("pattern", ["50%", "50% per matrix", "2:4"])
@pytest.mark.parametrize("block_size", [5, 128])
def test_weights_of_dead_inputs_are_zeroed_and_go_first(pattern, block_size):
    weight, inputs = random_weight(), random_inputs()
    dead = [1, 2, 10]
    inputs[:, dead] = 0
    weight[:, dead] = 100.0
    found = prune(f"sparsegpt(block_size={block_size})", pattern, matrix_of(weight, inputs))
    assert not found.mask[:, dead].any() and bool(found.weight.isfinite().all())
    mask, updated = literal_sparsegpt(weight, inputs, pattern, 30, block_size)
    assert torch.equal(found.mask, mask)
    torch.testing.assert_close(found.weight, updated.float(), rtol=2e-3, atol=2e-3)


def test_damping_grows_tenfold_until_the_factorisation_works(caplog):
    gram = torch.full((COLUMNS, COLUMNS), 1.005)  # its lowest eigenvalue is -0.005
    gram.fill_diagonal_(1.0)
    inputs = Statistics(1, torch.ones(COLUMNS).double(), torch.ones(COLUMNS).double(), gram)
    with caplog.at_level(logging.WARNING):
        found = prune("sparsegpt(damping=0.0001)", "50%", Matrix("m", random_weight(), inputs))
    assert [record.getMessage() for record in caplog.records] == [
        "Cholesky factorisation failed with damping 0.0001; trying 0.001",
        "Cholesky factorisation failed with damping 0.001; trying 0.01",
    ]
    caplog.clear()
    direct = prune("sparsegpt(damping=0.01)", "50%", Matrix("m", random_weight(), inputs))
    assert not caplog.records
    assert torch.equal(found.mask, direct.mask) and bool(found.weight.isfinite().all())
    torch.testing.assert_close(found.weight, direct.weight, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gram_matrix_that_is_not_finite_is_reported_with_its_matrix(bad):
    matrix = matrix_of(random_weight(), random_inputs(), name="layers.3.q_proj")
    matrix.inputs.gram[2, 3] = bad
    with pytest.raises(FreelunchError, match=r"^layers\.3\.q_proj: the Gram matrix of its inputs contains NaN"):
        prune("sparsegpt", "50%", matrix)


def test_a_gram_matrix_that_no_damping_repairs_is_reported_with_its_matrix():
    gram = torch.full((COLUMNS, COLUMNS), 5.0)
    gram.fill_diagonal_(1.0)
    inputs = Statistics(1, torch.ones(COLUMNS).double(), torch.ones(COLUMNS).double(), gram)
    with pytest.raises(FreelunchError, match=r"^layers\.3\.q_proj: .*not positive definite, not with damping 1"):
        prune("sparsegpt", "50%", Matrix("layers.3.q_proj", random_weight(), inputs))


@pytest.mark.parametrize("pattern", ["50%", "50% per matrix", "2:4"])
def test_sparsegpt_loses_less_than_its_own_mask_and_than_wanda(pattern):
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(200, 8, generator=generator) @ torch.randn(8, 32, generator=generator)
        matrix = matrix_of(random_weight(seed, 16, 32), inputs + 0.3 * torch.randn(200, 32, generator=generator))
        found, wanda = (prune(name, pattern, matrix, 256) for name in ("sparsegpt", "wanda"))
        loss = relative_error(matrix, found)
        assert loss < 0.6 * relative_error(matrix, Pruned(found.mask, matrix.weight, None))
        assert loss < 0.6 * relative_error(matrix, wanda)


def test_the_weights_of_the_dense_model_are_not_written_to():
    for name in NAMES:
        matrix = matrix_of(random_weight(), random_inputs())
        gram = matrix.inputs.gram.clone()
        for pattern in PRUNED:
            prune(name, pattern, matrix)
        assert torch.equal(matrix.weight, random_weight()) and torch.equal(matrix.inputs.gram, gram)


# --- what no criterion may depend on ---------------------------------------------------------------------------------


def collected(module, batches):
    collector = Collector({"it": module}, gram=True)
    with collector.watching():
        for batch in batches:
            module(batch)
    return Matrix("it", module.weight.detach().float(), collector.results()["it"])


def linear(weight, dtype=torch.float32):
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=dtype)
    module.weight.data.copy_(weight)
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("pattern", ["50%", "50% per matrix", "2:4"])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_computed_in_float32(name, pattern, dtype):
    # squares of 300 and more are no float16
    module, inputs = linear(random_weight(2), dtype), (100 * random_inputs(2)).clamp(-6e4, 6e4).to(dtype)
    assert inputs.float().abs().max() > 300
    matrix = collected(module, inputs.reshape(2, TOKENS // 2, COLUMNS).split(1))
    found = prune(name, pattern, matrix)
    weight, inputs = module.weight.detach().float(), inputs.float()
    if name == "random":
        assert torch.equal(found.mask, prune(name, pattern, matrix_of(weight, inputs, name="it")).mask)
    elif name == "sparsegpt":
        mask, updated = literal_sparsegpt(weight, inputs, pattern, 30)
        assert torch.equal(found.mask, mask)
        torch.testing.assert_close(found.weight, updated.float(), rtol=2e-3, atol=2e-3)
    else:
        assert torch.equal(found.mask, literal_mask(literal_scores(name, weight, inputs), pattern, 30))
    assert found.weight.dtype == torch.float32


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_weight_that_is_not_finite_is_reported_with_its_matrix(name, bad):
    weight = random_weight()
    weight[2, 3] = bad
    with pytest.raises(FreelunchError, match=rf"(?i)^layers\.3\.q_proj: {name} scores contain NaN"):
        prune(name, "50%", matrix_of(weight, random_inputs(), name="layers.3.q_proj"))


@pytest.mark.parametrize("name", NAMES)
def test_a_pattern_that_does_not_fit_is_reported_with_its_matrix(name):
    matrix = matrix_of(random_weight(), random_inputs(), name="layers.3.q_proj")
    with pytest.raises(FreelunchError, match=r"3:5: the 12 inputs of layers\.3\.q_proj"):
        prune(name, "3:5", matrix, 24)


@pytest.mark.parametrize("text", ["50%", "2:4"])
def test_a_mask_with_the_right_count_in_the_wrong_places_is_reported(text):
    wrong = torch.zeros(4, 8, dtype=torch.bool)
    wrong[:2] = True
    with pytest.raises(FreelunchError, match=r"^q: 16 weights pruned"):
        check_mask("q", wrong, parse_pattern(text), 16)
    check_mask("q", wrong, parse_pattern("50% per matrix"), 16)


# --- what a pruned matrix loses --------------------------------------------------------------------------------------


def test_the_relative_error_is_the_lost_share_of_the_outputs_squares():
    weight, inputs = random_weight(), random_inputs()
    matrix = matrix_of(weight, inputs)
    found = prune("sparsegpt", "50%", matrix)
    junk = torch.where(found.mask, found.weight, 99.0)  # what lies where pruned does not matter
    lost, whole = 0.0, 0.0
    for x in inputs.double():
        for dense, sparse, mask in zip(weight.double(), found.weight.double(), found.mask, strict=True):
            output = sum(float(x[j] * dense[j]) for j in range(COLUMNS))
            pruned = sum(float(x[j] * sparse[j]) for j in range(COLUMNS) if mask[j])
            lost, whole = lost + (output - pruned) ** 2, whole + output**2
    for values in (found.weight, junk):
        assert relative_error(matrix, Pruned(found.mask, values, None)) == pytest.approx(lost / whole, rel=1e-4)
