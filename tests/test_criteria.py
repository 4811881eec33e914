"""Criteria equal their definitions written as loops, and statistics equal literal sums."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from freelunch import criteria
from freelunch.blocks import matrices
from freelunch.criteria.magnitude import Magnitude
from freelunch.criteria.wanda import Wanda
from freelunch.errors import FreelunchError
from freelunch.overlays import InMemory
from freelunch.patterns import parse_pattern
from freelunch.pruning import check_count, prune_matrix
from freelunch.statistics import Collector, Statistics
from freelunch.streaming import Network
from tiny import random_model, random_tokens

ROWS, COLUMNS, TOKENS = 5, 8, 20


def random_case(seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(TOKENS, COLUMNS, generator=generator) * torch.logspace(-1, 1, COLUMNS)
    return torch.randn(ROWS, COLUMNS, generator=generator), inputs


def watched(module, batches):
    collector = Collector({"it": module})
    with collector.watching():
        for batch in batches:
            module(batch)
    return collector.results()["it"]


def block_statistics(family, dtype=torch.float32, batch=4):
    """Results of a collector over block 1 of a model, and what the block's linear layers were given."""
    model = random_model(family, dtype=dtype)
    network = Network(model.config, InMemory(dict(model.state_dict())), dtype)
    hidden = network.embed(random_tokens(4, 12))
    seen: dict[str, list[torch.Tensor]] = {}
    with network.block(1) as block:
        linear = matrices(block)
        collector = Collector(linear)
        handles = [
            module.register_forward_pre_hook(
                lambda _, inputs, name=name: seen.setdefault(name, []).append(inputs[0].clone())
            )
            for name, module in linear.items()
        ]
        with collector.watching():
            for rows in hidden.split(batch):
                network.run_block(1, block, rows)
        for handle in handles:
            handle.remove()
    return collector, seen


def test_magnitude_prunes_the_smallest_weights_of_every_row():
    weight, _ = random_case()
    mask = prune_matrix("m", weight, Statistics(0, torch.ones(COLUMNS)), Magnitude(), parse_pattern("50%"))
    for row, kept in zip(weight.tolist(), mask.tolist(), strict=True):
        dropped = sorted(range(COLUMNS), key=lambda j: abs(row[j]))[: COLUMNS // 2]
        assert [j for j in range(COLUMNS) if not kept[j]] == sorted(dropped)


@pytest.mark.parametrize("text", ["50%", "37.5%", "50% per matrix", "2:4"])
def test_wanda_prunes_by_weight_times_the_norm_of_its_input(text):
    weight, inputs = random_case()
    statistics = watched(nn.Linear(COLUMNS, ROWS), [inputs])
    scores = [
        [abs(w) * math.sqrt(sum(x[j] ** 2 for x in inputs.tolist())) for j, w in enumerate(row)]
        for row in weight.tolist()
    ]
    torch.testing.assert_close(Wanda().score(weight, statistics), torch.tensor(scores))
    wanted = parse_pattern(text).mask(torch.tensor(scores, dtype=torch.float64))
    mask = prune_matrix("m", weight, statistics, Wanda(), parse_pattern(text))
    assert torch.equal(mask, wanted)
    assert not torch.equal(mask, prune_matrix("m", weight, statistics, Magnitude(), parse_pattern(text)))


def test_wanda_is_magnitude_where_all_inputs_are_equally_loud():
    weight, _ = random_case()
    statistics = Statistics(3, torch.full((COLUMNS,), 7.0, dtype=torch.float64))
    masks = [prune_matrix("m", weight, statistics, method, parse_pattern("50%")) for method in (Wanda(), Magnitude())]
    assert torch.equal(*masks)


def test_wanda_prunes_what_reads_a_silent_input_first():
    weight = torch.tensor([[9.0, 0.1, 0.2, 0.3]])
    statistics = Statistics(1, torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    assert prune_matrix("m", weight, statistics, Wanda(), parse_pattern("25%")).tolist() == [[False, True, True, True]]


def test_criteria_are_found_by_name():
    assert isinstance(criteria.named("wanda"), Wanda) and isinstance(criteria.named("magnitude"), Magnitude)


@pytest.mark.parametrize("shape", [(TOKENS, COLUMNS), (4, 5, COLUMNS)])
def test_squared_norms_are_sums_of_squares_over_all_tokens(shape):
    _, inputs = random_case()
    statistics = watched(nn.Linear(COLUMNS, ROWS), [inputs.reshape(shape)])
    literal = [math.fsum(x[j] ** 2 for x in inputs.tolist()) for j in range(COLUMNS)]
    assert statistics.tokens == TOKENS and statistics.squared_norms.dtype == torch.float64
    torch.testing.assert_close(
        statistics.squared_norms, torch.tensor(literal, dtype=torch.float64), rtol=1e-6, atol=0
    )  # fmt: skip


def test_sums_keep_what_float32_would_lose():
    # 2^24 + 1 is no float32: in it, a loud token would drown all quiet ones
    inputs = torch.ones(1001, 1)
    inputs[0] = 2.0**12
    assert watched(nn.Linear(1, 1), inputs.split(10)).squared_norms.item() == 2**24 + 1000


@pytest.mark.parametrize("sizes", [[20], [1] * 20, [7, 7, 6], [19, 1]])
def test_batching_changes_neither_sums_nor_ranks(sizes):
    weight, inputs = random_case(3)
    module = nn.Linear(COLUMNS, ROWS)
    once, parts = watched(module, [inputs]), watched(module, inputs.split(sizes))
    assert parts.tokens == once.tokens
    torch.testing.assert_close(parts.squared_norms, once.squared_norms, rtol=1e-14, atol=0)
    assert torch.equal(Wanda().score(weight, parts).argsort(), Wanda().score(weight, once).argsort())


def test_hooks_are_gone_after_watching_even_when_a_pass_fails():
    module = nn.Linear(COLUMNS, ROWS)
    collector = Collector({"it": module})
    with pytest.raises(RuntimeError), collector.watching():
        module(torch.ones(2, COLUMNS))
        module(torch.ones(2, COLUMNS + 1))
    module(torch.ones(2, COLUMNS))
    assert collector.results()["it"].tokens in (2, 4)
    assert not module._forward_pre_hooks


SHARED = {
    "llama": [{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}, {"mlp.gate_proj", "mlp.up_proj"}],
    "qwen2": [{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}, {"mlp.gate_proj", "mlp.up_proj"}],
    "gemma2": [{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}, {"mlp.gate_proj", "mlp.up_proj"}],
    "opt": [{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}],
    "phi3": [],  # its projections are fused already
}


@pytest.mark.parametrize("family", SHARED)
def test_matrices_that_read_the_same_tensor_share_one_accumulation(family):
    collector, seen = block_statistics(family, batch=2)
    groups: dict[str, set[str]] = {}
    for name, leader in collector.leaders.items():
        groups.setdefault(leader, set()).add(name)
    assert set(collector.leaders) == set(seen)
    shared = [group for group in groups.values() if len(group) > 1]
    assert sorted(map(sorted, shared)) == sorted(map(sorted, SHARED[family]))
    results = collector.results()
    for group in groups.values():
        assert len({id(results[name].squared_norms) for name in group}) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", SHARED)
def test_every_matrix_of_a_block_gets_the_norms_of_its_own_inputs(family, dtype):
    collector, seen = block_statistics(family, dtype, batch=3)
    results = collector.results()
    assert set(results) == set(seen)
    for name, inputs in seen.items():
        rows = torch.cat([batch.reshape(-1, batch.shape[-1]) for batch in inputs]).double()
        assert results[name].tokens == len(rows) == 48
        torch.testing.assert_close(results[name].squared_norms, rows.square().sum(0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["magnitude", "wanda"])
def test_a_weight_that_is_not_finite_is_reported_with_its_matrix(name, bad):
    weight, _ = random_case()
    weight[2, 3] = bad
    statistics = Statistics(1, torch.ones(COLUMNS, dtype=torch.float64))
    with pytest.raises(FreelunchError, match=rf"^layers\.3\.q_proj: {name.capitalize()} scores contain NaN"):
        prune_matrix("layers.3.q_proj", weight, statistics, criteria.named(name), parse_pattern("50%"))


def test_a_statistic_that_is_not_finite_is_reported_with_its_matrix():
    weight, _ = random_case()
    statistics = Statistics(1, torch.full((COLUMNS,), float("nan"), dtype=torch.float64))
    with pytest.raises(FreelunchError, match=r"^layers\.3\.q_proj: Wanda"):
        prune_matrix("layers.3.q_proj", weight, statistics, Wanda(), parse_pattern("50%"))


def test_a_pattern_that_does_not_fit_is_reported_with_its_matrix():
    weight, _ = random_case()
    with pytest.raises(FreelunchError, match=r"3:5: the 8 inputs of layers\.3\.q_proj"):
        prune_matrix("layers.3.q_proj", weight, Statistics(0, torch.ones(COLUMNS)), Magnitude(), parse_pattern("3:5"))


@pytest.mark.parametrize("text", ["50%", "50% per matrix", "2:4"])
def test_a_mask_with_a_wrong_count_is_reported_with_its_matrix(text):
    pattern = parse_pattern(text)
    mask = pattern.mask(random_case()[0])
    check_count("q", mask, pattern)
    wrong = mask.clone()
    wrong[0, int(mask[0].int().argmax())] = False
    with pytest.raises(FreelunchError, match=rf"^q: 21 weights pruned, {text} asks for 20"):
        check_count("q", wrong, pattern)


@pytest.mark.parametrize("text", ["50%", "2:4"])
def test_a_mask_with_the_right_count_in_the_wrong_places_is_reported(text):
    wrong = torch.zeros(4, 8, dtype=torch.bool)
    wrong[:2] = True
    with pytest.raises(FreelunchError, match=r"^q: 16 weights pruned"):
        check_count("q", wrong, parse_pattern(text))
    check_count("q", wrong, parse_pattern("50% per matrix"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_scores_are_computed_in_float32(dtype):
    weight, _ = random_case()
    weight = weight.to(dtype)
    statistics = Statistics(1, torch.rand(COLUMNS, dtype=torch.float64))
    masks = [prune_matrix("m", w, statistics, Wanda(), parse_pattern("50%")) for w in (weight, weight.float())]
    assert torch.equal(*masks)
