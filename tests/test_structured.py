"""Heads and channels: found without family code, scored as loops do, and gone as if they had never been there."""

from __future__ import annotations

import copy
import functools
import itertools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from freelunch.blocks import matrices as linear_layers
from freelunch.criteria import parse_criterion
from freelunch.errors import FreelunchError
from freelunch.matrix import Matrices, Matrix
from freelunch.method import parse_method
from freelunch.overlays import InMemory
from freelunch.patterns import rounded
from freelunch.pruning import Pruner
from freelunch.refinements.refinement import Pruned
from freelunch.statistics import Collector
from freelunch.streaming import Network
from freelunch.structured import Heads, Units, find_units, keep_in_block, keep_in_model
from tiny import random_model, random_tokens

quickly = settings(deadline=None, max_examples=60)
FAMILIES = ["llama", "qwen2", "opt"]
BLOCKS = 3
CHANNELS = 48
QKV = [f"self_attn.{part}_proj" for part in "qkv"]
PRODUCERS = {"llama": ["mlp.gate_proj", "mlp.up_proj"], "qwen2": ["mlp.gate_proj", "mlp.up_proj"], "opt": ["fc1"]}
CONSUMERS = {
    "llama": ("self_attn.o_proj", "mlp.down_proj"),
    "qwen2": ("self_attn.o_proj", "mlp.down_proj"),
    "opt": ("self_attn.out_proj", "fc2"),
}
HEADS = {"llama": Heads(4, 2, 8), "qwen2": Heads(4, 2, 8), "opt": Heads(4, 4, 8), "phi3": Heads(4, 2, 8)}
METHODS = ["magnitude", "wanda", "flap"]


@dataclass(frozen=True)
class Case:
    """A tiny network with everything that a pruner is given, and the raw inputs behind its statistics."""

    family: str
    network: Network
    hidden: list[Tensor]
    matrices: Matrices
    leaders: dict[int, dict[str, str]]
    inputs: dict[str, Tensor]

    @property
    def heads(self) -> Heads:
        return HEADS[self.family]

    def prune(self, *parts: str) -> dict[str, Pruned]:
        pruner = Pruner(parse_method(*parts), self.matrices, self.leaders, self.heads)
        return {
            matrix.name: pruned
            for index in self.leaders
            for matrix, pruned in pruner.block(index, self.matrices.load)
        }  # fmt: skip

    def name(self, block: int, part: str) -> str:
        return f"{self.network.block_name(block)}.{part}"


@functools.cache
def case_of(family: str, dtype: torch.dtype = torch.float32) -> Case:
    model = random_model(family, dtype=dtype)
    network = Network(model.config, InMemory(dict(model.state_dict())), dtype)
    hidden = [network.embed(random_tokens(3, 11))]
    found: dict[str, Matrix] = {}
    blocks: dict[str, int] = {}
    leaders: dict[int, dict[str, str]] = {}
    inputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            inputs[name] = given[0].reshape(-1, given[0].shape[-1]).clone()

        return hook

    for index in range(BLOCKS):
        with network.block(index) as block:
            layers = {f"{network.block_name(index)}.{name}": each for name, each in linear_layers(block).items()}
            collector = Collector(layers)
            handles = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
            with collector.watching():
                hidden.append(network.run_block(index, block, hidden[-1]))
            for handle in handles:
                handle.remove()
            leaders[index] = collector.leaders
            for name, statistics in collector.results().items():
                bias = layers[name].bias
                bias = None if bias is None else bias.detach().float().clone()
                found[name] = Matrix(name, layers[name].weight.detach().float().clone(), statistics, bias)
                blocks[name] = index
    shapes = {name: tuple(matrix.weight.shape) for name, matrix in found.items()}
    return Case(family, network, hidden, Matrices(shapes, blocks, found.__getitem__), leaders, inputs)


def units_of(case: Case, block: int = 1) -> list[Units]:
    return find_units(case.leaders[block], case.matrices.shapes, case.heads)


# --- where units lie -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_and_channels_are_found_from_calls_and_shapes(family):
    case = case_of(family)
    o, down = CONSUMERS[family]
    shared = 1 if family == "opt" else 2
    for block in range(BLOCKS):
        heads, channels = units_of(case, block)
        assert (heads.kind, heads.count, heads.width, heads.consumer) == ("heads", 4, 8, case.name(block, o))
        assert heads.producers == {case.name(block, name): 1 if "q_" in name else shared for name in QKV}
        assert (channels.kind, channels.count, channels.width) == ("channels", CHANNELS, 1)
        assert channels.consumer == case.name(block, down)
        assert channels.producers == {case.name(block, name): 1 for name in PRODUCERS[family]}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pattern", ["25% structured", "25% structured global"])
def test_all_matrices_of_all_blocks_get_a_mask_of_whole_rows_or_columns(family, pattern):
    case = case_of(family)
    found = case.prune("magnitude", pattern, "uniform", "none")
    assert list(found) == list(case.matrices.shapes)
    for name, pruned in found.items():
        matrix, mask = case.matrices.load(name), pruned.mask
        assert mask.shape == matrix.weight.shape and mask.dtype == torch.bool
        if name.endswith(CONSUMERS[family]):
            assert bool((mask == mask[:1]).all())
        else:
            assert bool((mask == mask[:, :1]).all())
        assert torch.equal(pruned.weight, matrix.weight)
        assert pruned.bias is matrix.bias


def test_fused_projections_are_refused_with_what_was_found():
    case = case_of("phi3")
    message = r"one kind each; the shapes of qkv_proj -> o_proj -> gate_up_proj -> down_proj are not .* be fused\)$"
    with pytest.raises(FreelunchError, match=message) as caught:
        units_of(case)
    assert "4 heads, 2 key-value heads and one MLP" in str(caught.value)
    for pattern in ("25% structured", "25% structured global"):
        with pytest.raises(FreelunchError, match="be fused"):
            case.prune("magnitude", pattern, "uniform", "none")
    case.prune("magnitude", "25%", "uniform", "none")


def of_leaders(*groups: str) -> dict[str, str]:
    return {name: group.split()[0] for group in groups for name in group.split()}


@pytest.mark.parametrize(
    ("leaders", "listed"),
    [
        (of_leaders("q k v", "o"), "q/k/v -> o"),
        (of_leaders("q k v", "o", "router", "gate up", "down"), "q/k/v -> o -> router -> gate/up -> down"),
        (of_leaders("q k v", "o", "gate up", "down", "adapter"), "q/k/v -> o -> gate/up -> down -> adapter"),
        (of_leaders("q k v", "o", "gate up", "down two"), "q/k/v -> o -> gate/up -> down/two"),
        (of_leaders("q k v", "o gate up", "gate2", "down"), "q/k/v -> o/gate/up -> gate2 -> down"),
        (of_leaders("q k v gate up", "o", "down"), "q/k/v/gate/up -> o -> down"),  # parallel
    ],
)
def test_blocks_of_another_form_are_refused_with_their_form(leaders, listed):
    with pytest.raises(FreelunchError, match=f"need q, k, v and o, then an MLP; found {listed}$"):
        find_units(leaders, dict.fromkeys(leaders, (8, 8)), Heads(2, 2, 4))


SHAPES = {"q": (16, 12), "k": (8, 12), "v": (8, 12), "o": (12, 16), "up": (20, 12), "down": (12, 20)}


@pytest.mark.parametrize(("name", "shape"), [("q", (24, 12)), ("k", (4, 12)), ("o", (12, 8)), ("up", (40, 12))])
def test_shapes_that_are_not_those_of_the_heads_or_the_mlp_are_refused(name, shape):
    leaders = of_leaders("q k v", "o", "up", "down")
    heads, channels = find_units(leaders, SHAPES, Heads(4, 2, 4))
    assert (heads.count, dict(heads.producers), channels.count) == (4, {"q": 1, "k": 2, "v": 2}, 20)
    with pytest.raises(FreelunchError, match="one kind each; the shapes of q/k/v -> o -> up -> down"):
        find_units(leaders, SHAPES | {name: shape}, Heads(4, 2, 4))


def test_a_unit_costs_its_rows_and_columns_and_its_share_of_common_ones():
    heads, channels = find_units(of_leaders("q k v", "o", "up", "down"), SHAPES, Heads(4, 2, 4))
    # 4 rows of 12 in q, half of 4 rows of 12 in k and in v, 4 columns of 12 in o
    assert heads.cost(SHAPES) == 48 + 24 + 24 + 48
    assert channels.cost(SHAPES) == 12 + 12
    # all units together cost what all matrices have
    assert 4 * heads.cost(SHAPES) + 20 * channels.cost(SHAPES) == sum(a * b for a, b in SHAPES.values())


def test_a_key_value_head_goes_exactly_when_its_whole_query_group_does():
    heads, _ = find_units(of_leaders("q k v", "o", "up", "down"), SHAPES, Heads(4, 2, 4))
    for kept in itertools.product([False, True], repeat=4):
        masks = heads.masks(torch.tensor(kept), SHAPES)
        assert {name: mask.shape for name, mask in masks.items()} == {name: SHAPES[name] for name in "qkvo"}
        for head in range(4):
            rows = slice(4 * head, 4 * head + 4)
            assert masks["q"][rows].unique().tolist() == [kept[head]] == masks["o"][:, rows].unique().tolist()
        for group in range(2):
            for name in "kv":
                found = masks[name][4 * group : 4 * group + 4].unique().tolist()
                assert found == [kept[2 * group] or kept[2 * group + 1]]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("pattern", ["25% structured", "50% structured", "60% structured global"])
def test_key_value_heads_of_a_model_go_with_their_query_groups(family, pattern):
    case = case_of(family)
    found = case.prune("wanda", pattern, "uniform", "none")
    for block in range(BLOCKS):
        query = found[case.name(block, "self_attn.q_proj")].mask.view(4, 8, -1)[:, 0, 0]
        for part in "kv":
            mask = found[case.name(block, f"self_attn.{part}_proj")].mask.view(2, 8, -1)
            assert bool((mask == mask[:, :1, :1]).all())
            assert torch.equal(mask[:, 0, 0], query.view(2, 2).any(1))


# --- scores ----------------------------------------------------------------------------------------------------------


def literal_scores(case: Case, units: Units, method: str) -> list[float]:
    """Sum over a unit's columns of the mean over rows of the weight scores, from the raw inputs."""
    weight, inputs = case.matrices.load(units.consumer).weight.double(), case.inputs[units.consumer].double()
    scores = []
    for unit in range(units.count):
        score = 0.0
        for column in range(unit * units.width, (unit + 1) * units.width):
            for row in range(len(weight)):
                w = float(weight[row, column])
                if method == "magnitude":
                    score += abs(w) / len(weight)
                elif method == "wanda":
                    score += abs(w) * float(inputs[:, column].norm()) / len(weight)
                else:
                    score += w * w * float(torch.var(inputs[:, column])) / len(weight)
        scores.append(score)
    return scores


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_unit_scores_equal_loops_over_their_columns(family, method):
    case = case_of(family)
    for units in units_of(case):
        matrix = case.matrices.load(units.consumer)
        found = units.scores(parse_criterion(method).scores(matrix))
        assert found.tolist() == pytest.approx(literal_scores(case, units, method), rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_flap_summed_over_rows_is_the_weighted_input_feature_variance_of_the_paper(family):
    # WIFV_j = 1 / (N - 1) sum_n (X_nj - mean X_j)^2 * ||W_:j||^2
    case = case_of(family)
    for units in units_of(case):
        matrix, inputs = case.matrices.load(units.consumer), case.inputs[units.consumer].double()
        fluctuation = torch.var(inputs, dim=0)
        wifv = [
            float(fluctuation[j]) * sum(float(w) ** 2 for w in matrix.weight[:, j]) for j in range(inputs.shape[1])
        ]  # fmt: skip
        found = parse_criterion("flap").scores(matrix).sum(0)
        torch.testing.assert_close(found.double(), torch.tensor(wifv, dtype=torch.float64), rtol=1e-4, atol=0)
        torch.testing.assert_close(matrix.inputs.means, inputs.mean(0), rtol=1e-5, atol=1e-7)


# --- so many of every block ------------------------------------------------------------------------------------------


@quickly
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.decimals(0, "0.99", places=2).map(float))
def test_the_lowest_units_of_a_block_go_but_never_the_last(scores, sparsity):
    kept = keep_in_block(torch.tensor(scores).float(), sparsity)
    count = min(rounded(sparsity, len(scores)), len(scores) - 1)
    order = sorted(range(len(scores)), key=lambda unit: scores[unit])
    assert [unit for unit in range(len(scores)) if not kept[unit]] == sorted(order[:count])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("percent", "heads", "channels"), [("0%", 0, 0), ("12.5%", 1, 6), ("20%", 1, 10), ("50%", 2, 24), ("99%", 3, 47)]
)
def test_every_block_loses_exactly_its_share_of_the_lowest_units(family, method, percent, heads, channels):
    case = case_of(family)
    found = case.prune(method, f"{percent} structured", "uniform", "none")
    for block in range(BLOCKS):
        for units, count in zip(units_of(case, block), (heads, channels), strict=True):
            scores = literal_scores(case, units, method) if block == 1 else None
            kept = found[units.consumer].mask[0].view(units.count, units.width)[:, 0].tolist()
            gone = [unit for unit in range(units.count) if not kept[unit]]
            assert len(gone) == count
            if scores is not None:
                assert gone == sorted(sorted(range(units.count), key=scores.__getitem__)[:count])


def test_an_allocation_by_block_says_how_many_units_each_block_loses():
    case = case_of("llama")
    found = case.prune("wanda", "50% structured", "given(25%, 50%, 75%)", "none")
    for block, (heads, channels) in enumerate([(1, 12), (2, 24), (3, 36)]):
        for units, count in zip(units_of(case, block), (heads, channels), strict=True):
            assert int((~found[units.consumer].mask[0]).sum()) == count * units.width
    found = case.prune("wanda", "50% structured", "owl(lambda=0.25, outlier=2)", "none")
    counts = [int((~found[units_of(case, block)[1].consumer].mask[0]).sum()) for block in range(BLOCKS)]
    assert len(set(counts)) > 1 and abs(sum(counts) - 72) <= 2  # rounded block by block


def channels_lost(case: Case, found: dict[str, Pruned]) -> list[int]:
    return [int((~found[units_of(case, block)[1].consumer].mask[0]).sum()) for block in range(BLOCKS)]


def test_owl_prunes_no_block_beyond_its_range_at_low_sparsities():
    case = case_of("llama")
    method = parse_method("wanda", "10% structured", "owl(lambda=0.25, outlier=2)", "none")
    targets = method.allocation.targets(case.matrices, 0.1 * sum(case.matrices.sizes.values()))
    shares = [targets[units_of(case, block)[1].consumer] / (32 * CHANNELS) for block in range(BLOCKS)]
    assert min(shares) < 0  # the range reaches below zero: such a block loses nothing
    lost = channels_lost(case, case.prune("wanda", "10% structured", "owl(lambda=0.25, outlier=2)", "none"))
    assert all((count == 0) == (share < 0) for count, share in zip(lost, shares, strict=True))
    assert max(lost) <= CHANNELS * (0.1 + 2 * 0.25)


def test_owl_prunes_what_the_structured_pattern_asks_for_at_low_sparsities():
    case = case_of("llama")
    lost = channels_lost(case, case.prune("wanda", "10% structured", "owl(lambda=0.25, outlier=2)", "none"))
    assert sum(lost) == pytest.approx(0.1 * BLOCKS * CHANNELS, abs=2)


# --- one threshold over the model ------------------------------------------------------------------------------------


def literal_keep(scores: list[list[float]], costs: list[float], sparsity: float) -> list[list[bool]]:
    """Standardise, protect the best of each, and try every number of lowest units for the nearest cost."""
    queue = []
    for index, each in enumerate(scores):
        mean = sum(each) / len(each)
        spread = (sum((s - mean) ** 2 for s in each) / max(1, len(each) - 1)) ** 0.5
        best = each.index(max(each))
        queue += [((s - mean) / max(spread, 1e-12), index, at) for at, s in enumerate(each) if at != best]
    queue.sort(key=lambda entry: entry[0])
    target = sparsity * sum(cost * len(each) for cost, each in zip(costs, scores, strict=True))
    error = [abs(sum(costs[index] for _, index, _ in queue[:n]) - target) for n in range(len(queue) + 1)]
    kept = [[True] * len(each) for each in scores]
    for _, index, at in queue[: error.index(min(error))]:
        kept[index][at] = False
    return kept


@quickly
@given(
    st.lists(
        st.tuples(st.lists(st.floats(0, 9, width=16), min_size=1, max_size=9), st.sampled_from([1.0, 2.5, 7.0, 40.0])),
        min_size=1,
        max_size=5,
    ),
    st.integers(0, 2**31 - 1),
    st.floats(0, 0.99),
)
def test_one_threshold_on_standardised_scores_brings_weights_nearest_to_the_sparsity(parts, seed, sparsity):
    generator = torch.Generator().manual_seed(seed)
    # noise: without ties the order is certain
    scores = [torch.tensor(each).double() + torch.rand(len(each), generator=generator) for each, _ in parts]
    costs = [cost for _, cost in parts]
    kept = keep_in_model(scores, costs, sparsity)
    assert [each.tolist() for each in kept] == literal_keep([each.tolist() for each in scores], costs, sparsity)


def test_the_threshold_is_on_scores_in_units_of_their_own_spread():
    # the second kind has scores a thousand times larger: unstandardised, the first would go first
    scores = [torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.tensor([1.0, 2.0, 3.0, 6.1]) * 1000]
    kept = keep_in_model(scores, [1.0, 1.0], 0.25)
    assert [each.tolist() for each in kept] == [[False, True, True, True], [False, True, True, True]]


def test_costs_decide_how_many_units_go():
    scores = [torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([10.0, 10.9, 12.0, 13.0])]
    count = lambda costs, sparsity: sum(int((~each).sum()) for each in keep_in_model(scores, costs, sparsity))  # noqa: E731
    assert count([1.0, 1.0], 0.25) == 2
    assert count([9.0, 1.0], 0.25) == 2  # 10 of 40
    assert count([9.0, 1.0], 0.10) == 0  # 0 of 4 is nearer than 9
    assert count([9.0, 1.0], 0.12) == 1  # 9 is nearer to 4.8 than 0
    assert count([1.0, 1.0], 0.99) == 6  # the last of each kind stays


def test_scores_that_are_all_equal_and_single_units_break_nothing():
    kept = keep_in_model([torch.full((4,), 3.0), torch.tensor([5.0]), torch.arange(4.0)], [1.0, 1.0, 1.0], 0.3)
    assert [int(each.sum()) for each in kept][1] == 1 and sum(int((~each).sum()) for each in kept) == 3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sparsity", [0.2, 0.55])
def test_a_model_is_pruned_by_one_threshold_over_all_its_units(family, method, sparsity):
    case = case_of(family)
    flat = [units for block in range(BLOCKS) for units in units_of(case, block)]
    scores = [literal_scores(case, units, method) for units in flat]
    width, shared = 32, 1 if family == "opt" else 2
    head, channel = 8 * width * (2 + 2 / shared), width * (len(PRODUCERS[family]) + 1)
    costs = [head if units.kind == "heads" else channel for units in flat]
    wanted = literal_keep(scores, costs, sparsity)
    found = case.prune(method, f"{100 * sparsity:g}% structured global", "uniform", "none")
    for units, kept in zip(flat, wanted, strict=True):
        assert found[units.consumer].mask[0].view(units.count, -1)[:, 0].tolist() == kept
    # key-value heads that serve a query head that stays do not go, so less may be lost than asked for
    lost = sum(int((~pruned.mask).sum()) for pruned in found.values()) / sum(case.matrices.sizes.values())
    assert sparsity - 0.06 < lost < sparsity + 0.03


# --- the network that is left ----------------------------------------------------------------------------------------


def masked(block: nn.Module, found: dict[str, Pruned], prefix: str) -> nn.Module:
    """A copy of a block with pruned weights zero, and the biases that refinements gave."""
    changed = copy.deepcopy(block)
    for name, layer in linear_layers(changed).items():
        pruned = found[f"{prefix}.{name}"]
        layer.weight = nn.Parameter((pruned.weight * pruned.mask).to(layer.weight), requires_grad=False)
        if pruned.bias is not None:
            layer.bias = nn.Parameter(pruned.bias.to(layer.weight), requires_grad=False)
    return changed


def cut(block: nn.Module, found: dict[str, Pruned], prefix: str, only: list[str]) -> nn.Module:
    """A copy of a block whose ``only`` layers really are smaller: pruned rows and columns are cut out."""
    smaller = copy.deepcopy(block)
    for name in only:
        layer, pruned = smaller.get_submodule(name), found[f"{prefix}.{name}"]
        consumer = name.endswith(CONSUMERS["llama"] + CONSUMERS["opt"])
        rows = torch.ones(len(pruned.mask), dtype=torch.bool) if consumer else pruned.mask.any(1)
        columns = pruned.mask.any(0) if consumer else torch.ones(pruned.mask.shape[1], dtype=torch.bool)
        new = nn.Linear(int(columns.sum()), int(rows.sum()), bias=pruned.bias is not None, dtype=layer.weight.dtype)
        with torch.no_grad():
            new.weight.copy_(pruned.weight[rows][:, columns])
            if pruned.bias is not None:
                new.bias.copy_(pruned.bias[rows])
        smaller.set_submodule(name, new.requires_grad_(False))
    return smaller


def parts_of(family: str) -> dict[str, list[str]]:
    o, down = CONSUMERS[family]
    return {"attention": [*QKV, o], "mlp": [*PRODUCERS[family], down]}


@pytest.mark.parametrize("refinement", ["none", "bias"])
@pytest.mark.parametrize("family", FAMILIES)
def test_masked_weights_compute_what_a_really_smaller_network_computes(family, refinement):
    case = case_of(family, torch.float64)
    found = case.prune("flap", "50% structured", "uniform", refinement)
    for index in range(BLOCKS):
        # whole groups go: else a head that is gone still shares the keys and values of one that stays
        found |= without_first_group(case, found, index)
        with case.network.block(index) as block:
            prefix, hidden = case.network.block_name(index), case.hidden[index]
            dense = case.network.run_block(index, block, hidden)
            one = masked(block, found, prefix)
            wanted = case.network.run_block(index, one, hidden)
            assert not torch.allclose(wanted, dense, rtol=1e-3)
            for part, names in parts_of(family).items():
                smaller = cut(one, found, prefix, names)
                sizes = [smaller.get_submodule(name).weight.numel() for name in names]
                assert sum(sizes) <= 0.6 * sum(one.get_submodule(name).weight.numel() for name in names)
                if part == "attention" and family == "opt":
                    smaller.self_attn.num_heads //= 2
                torch.testing.assert_close(
                    case.network.run_block(index, smaller, hidden), wanted, rtol=1e-12, atol=1e-12
                )


def without_first_group(case: Case, found: dict[str, Pruned], block: int) -> dict[str, Pruned]:
    """The block's attention with heads 0 and 1 gone and the others kept."""
    heads = units_of(case, block)[0]
    masks = heads.masks(torch.tensor([False, False, True, True]), case.matrices.shapes)
    return {name: replace(found[name], mask=mask) for name, mask in masks.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_that_goes_alone_takes_its_part_of_the_output_and_no_other(family):
    # the dense attention with the columns of that head cut out of o: keys and values of its group stay
    case = case_of(family, torch.float64)
    found = case.prune("wanda", "25% structured", "uniform", "none")
    o = CONSUMERS[family][0]
    for index in range(BLOCKS):
        with case.network.block(index) as block:
            one = copy.deepcopy(block)
            for name in [*QKV, o]:
                layer, pruned = one.get_submodule(name), found[case.name(index, name)]
                layer.weight = nn.Parameter(layer.weight * pruned.mask, requires_grad=False)
            only = copy.deepcopy(block)
            kept = found[case.name(index, o)].mask
            assert int((~kept[0]).sum()) == 8
            layer = only.get_submodule(o)
            layer.weight = nn.Parameter(layer.weight * kept, requires_grad=False)
            pair = [case.network.run_block(index, each, case.hidden[index]) for each in (one, only)]
            torch.testing.assert_close(*pair, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pattern", ["25% structured", "30% structured global"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bias_compensation_preserves_the_mean_output_over_the_calibration_tokens(family, pattern):
    case = case_of(family)
    found = case.prune("flap", pattern, "uniform", "bias")
    for block in range(BLOCKS):
        for units in units_of(case, block):
            name = units.consumer
            matrix, pruned, inputs = case.matrices.load(name), found[name], case.inputs[name].double()
            bias = torch.zeros(len(matrix.weight)) if matrix.bias is None else matrix.bias
            dense = inputs @ matrix.weight.double().T + bias
            assert pruned.bias is not None
            sparse = inputs @ (pruned.weight * pruned.mask).double().T + pruned.bias
            torch.testing.assert_close(sparse.mean(0), dense.mean(0), rtol=1e-4, atol=1e-5)
            if not bool(pruned.mask.all()):
                plain = inputs @ (matrix.weight * pruned.mask).double().T + bias
                assert not torch.allclose(plain.mean(0), dense.mean(0), rtol=1e-3, atol=1e-4)
                # by hand: what pruned columns gave on average
                lost = [j for j in range(inputs.shape[1]) if not pruned.mask[0, j]]
                by_hand = bias + sum(float(inputs[:, j].mean()) * matrix.weight[:, j] for j in lost)
                torch.testing.assert_close(pruned.bias, by_hand, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_go_get_no_new_bias_and_rows_that_stay_lose_nothing(family):
    case = case_of(family)
    found = case.prune("flap", "50% structured", "uniform", "bias")
    for name, pruned in found.items():
        if not name.endswith(CONSUMERS[family]):
            before = case.matrices.load(name).bias
            before = torch.zeros(len(pruned.mask)) if before is None else before
            assert pruned.bias is not None
            torch.testing.assert_close(pruned.bias, before, rtol=0, atol=1e-6)


def test_scores_that_are_not_finite_are_reported_with_their_matrix():
    case = case_of("llama")
    bad = case.name(1, "mlp.down_proj")

    def load(name: str) -> Matrix:
        matrix = case.matrices.load(name)
        return replace(matrix, weight=matrix.weight * float("nan")) if name == bad else matrix

    for pattern in ("25% structured", "25% structured global"):
        method = parse_method("wanda", pattern, "uniform", "none")
        with pytest.raises(FreelunchError, match=rf"^{bad}: Wanda scores contain NaN"):
            pruner = Pruner(method, replace(case.matrices, load=load), case.leaders, case.heads)
            list(pruner.block(1, load))
