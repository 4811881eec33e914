"""Every criterion with every pattern and allocation on tiny models: exact counts, or a refusal that says why."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from freelunch.engine.blocks import matrices
from freelunch.engine.overlays import InMemory
from freelunch.engine.streaming import Network
from freelunch.errors import FreelunchError
from freelunch.pruning.criteria import CRITERIA
from freelunch.pruning.matrix import Matrices, Matrix
from freelunch.pruning.method import parse_method
from freelunch.pruning.patterns import NM, Structured, Unstructured, parse_pattern
from freelunch.pruning.pruner import Pruner
from freelunch.pruning.statistics import Collector
from freelunch.pruning.structured import Heads
from tiny import random_model, random_tokens

FAMILIES = ("qwen2", "opt")
PATTERNS = ("50%", "37% per matrix", "61.8% global", "2:4", "1:8", "25% structured", "25% structured global")
ALLOCATIONS = ("uniform", "erk", "lamp", "owl", "given(25%, 50%, 75%)")


@cache
def dense(family):
    """All matrices of a random model with the statistics of its own activations, and who shares inputs."""
    model = random_model(family)
    network = Network(model.config, InMemory(dict(model.state_dict())), torch.float32)
    hidden = network.embed(random_tokens(4, 16))
    found, leaders = {}, {}
    for index in range(len(network.blocks)):
        name = network.block_name(index)
        with network.block(index) as block:
            collector = Collector(matrices(block), gram=True)
            with collector.watching():
                hidden = network.run_block(index, block, hidden)
            leaders[index] = {f"{name}.{key}": f"{name}.{leader}" for key, leader in collector.leaders.items()}
            for key, inputs in collector.results().items():
                linear = block.get_submodule(key)
                bias = None if linear.bias is None else linear.bias.detach().clone()
                found[f"{name}.{key}"] = Matrix(f"{name}.{key}", linear.weight.detach().clone(), inputs, bias)
    blocks = {name: index for index, names in leaders.items() for name in names}
    shapes = {name: tuple(found[name].weight.shape) for name in blocks}
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = Heads(config.num_attention_heads, getattr(config, "num_key_value_heads", config.num_attention_heads), width)
    return Matrices(shapes, blocks, found.__getitem__), leaders, heads


def prune(family, criterion, pattern, allocation="uniform", refinement="none"):
    everything, leaders, heads = dense(family)
    method = parse_method(criterion, pattern, allocation, refinement)
    method.check(len(leaders))
    pruner = Pruner(method, everything, leaders, heads)
    return {matrix.name: (matrix, done) for index in leaders for matrix, done in pruner.block(index, everything.load)}


def sensible(pattern, allocation):
    parsed = parse_pattern(pattern)
    if getattr(parsed, "group", "") == "model":
        return allocation == "uniform"
    if allocation.startswith("given"):
        return parsed.sparsity == 0.5
    return not isinstance(parsed, Structured) or allocation in ("uniform", "owl")


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("criterion", CRITERIA.names)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_combination_prunes_exactly_or_says_why_not(family, criterion, pattern, allocation):
    if not sensible(pattern, allocation):
        with pytest.raises(FreelunchError, match=r"allocation|mean"):
            prune(family, criterion, pattern, allocation)
        return
    found = prune(family, criterion, pattern, allocation)
    parsed = parse_pattern(pattern)
    masks = [done.mask for _, done in found.values()]
    total = sum(mask.numel() for mask in masks)
    lost = sum(int((~mask).sum()) for mask in masks)
    assert all(bool(done.weight.isfinite().all()) for _, done in found.values())
    if isinstance(parsed, Unstructured):
        assert lost == int(parsed.sparsity * total + 0.5)
        if parsed.group == "row":
            for mask in masks:
                rows = (~mask).sum(1)
                assert int(rows.max()) - int(rows.min()) <= 1
    elif isinstance(parsed, NM):
        for mask in masks:
            groups = mask.reshape(-1, parsed.of).sum(1)
            assert bool((groups == groups[0]).all()) and int(groups[0]) >= 1
        step = min(mask.numel() // parsed.of for mask in masks)
        assert abs(lost - parsed.sparsity * total) <= step / 2
    else:
        for mask in masks:
            rows, columns = mask.any(1), mask.any(0)
            assert torch.equal(mask, rows.unsqueeze(1) & columns)
        assert 0 < lost < total


@pytest.mark.parametrize("pattern", ["50%", "2:4", "25% structured"])
@pytest.mark.parametrize("refinement", ["dsnot", "exact", "admm", "bias", "exact + bias", "dsnot + admm(iterations=5)"])
@pytest.mark.parametrize("family", FAMILIES)
def test_refinements_keep_the_pattern(family, refinement, pattern):
    if "dsnot" in refinement and "structured" in pattern:
        with pytest.raises(FreelunchError, match="would break up pattern"):
            prune(family, "wanda", pattern, refinement=refinement)
        return
    before = prune(family, "wanda", pattern)
    after = prune(family, "wanda", pattern, refinement=refinement)
    for name, (_, done) in after.items():
        old = before[name][1].mask
        if "dsnot" in refinement:
            size = 4 if pattern == "2:4" else old.shape[1]
            assert torch.equal(done.mask.reshape(-1, size).sum(1), old.reshape(-1, size).sum(1))
        else:
            assert torch.equal(done.mask, old)
        compensated = "bias" in refinement and not bool(done.mask[done.mask.any(1)].all())
        assert (done.bias is not None) if compensated else (done.bias is before[name][1].bias)


@pytest.mark.parametrize("criterion", CRITERIA.names)
def test_one_global_threshold_separates_the_kept_from_the_pruned(criterion):
    if criterion == "sparsegpt":
        pytest.skip("its scores change while it prunes")
    found = prune("llama", criterion, "61.8% global")
    scores = {
        name: parse_method(criterion, "2:4", "uniform", "none").criterion.score(m) for name, (m, _) in found.items()
    }
    kept = min(float(scores[name][done.mask].min()) for name, (_, done) in found.items())
    pruned = max(float(scores[name][~done.mask].max()) for name, (_, done) in found.items())
    assert pruned <= kept
    shares = [float(done.mask.float().mean()) for _, done in found.values()]
    assert max(shares) - min(shares) > 0.001
