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

from freelunch.engine.blocks import matrices as linear_layers
from freelunch.engine.overlays import InMemory
from freelunch.engine.streaming import Network
from freelunch.errors import FreelunchError
from freelunch.pruning.criteria import parse_criterion
from freelunch.pruning.matrix import Matrices, Matrix, Pruned
from freelunch.pruning.method import parse_method
from freelunch.pruning.pruner import Pruner
from freelunch.pruning.statistics import Collector
from freelunch.pruning.structured import Heads, Units, find_units, keep_highest, keep_in_model
from tiny import random_model, random_tokens

quickly = settings(deadline=None, max_examples=60)
FAMILIES = ["qwen2", "opt"]
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


def test_a_unit_costs_its_rows_and_columns_and_the_last_of_a_group_what_that_shares():
    heads, channels = find_units(of_leaders("q k v", "o", "up", "down"), SHAPES, Heads(4, 2, 4))
    # 4 rows of 12 in q and 4 columns of 12 in o; 4 rows of 12 in k and in v with the last of two
    assert heads.costs(torch.tensor([3, 0, 1, 7]), SHAPES).tolist() == [96 + 96, 96, 96, 96 + 96]
    assert channels.costs(torch.arange(20), SHAPES).tolist() == [12 + 12] * 20
    # all units together cost what all matrices have
    both = heads.costs(torch.arange(4), SHAPES).sum() + channels.costs(torch.arange(20), SHAPES).sum()
    assert int(both) == sum(a * b for a, b in SHAPES.values())


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


# --- so many of every block ------------------------------------------------------------------------------------------


@quickly
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.data())
def test_the_lowest_units_of_a_block_go(scores, data):
    count = data.draw(st.integers(0, len(scores)))
    kept = keep_highest(torch.tensor(scores).float(), count)
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
    assert len(set(counts)) > 1 and sum(counts) == 72


# --- one threshold over the model ------------------------------------------------------------------------------------


def literal_keep(
    units: list[Units], scores: list[list[float]], shapes: dict[str, tuple[int, ...]], sparsity: float
) -> list[list[bool]]:
    """Protect the best of each, and try every number of lowest units for the nearest count of zero weights."""
    queue = []
    for index, each in enumerate(scores):
        best = each.index(max(each))
        queue += [(s, index, at) for at, s in enumerate(each) if at != best]
    queue.sort(key=lambda entry: entry[0])
    target = sparsity * sum(rows * columns for rows, columns in shapes.values())
    tried = []
    for count in range(len(queue) + 1):
        kept = [[True] * len(each) for each in scores]
        for _, index, at in queue[:count]:
            kept[index][at] = False
        zeros = 0
        for each, stays in zip(units, kept, strict=True):
            zeros += shapes[each.consumer][0] * each.width * stays.count(False)
            for name, group in each.producers.items():
                gone = sum(not any(stays[at : at + group]) for at in range(0, len(stays), group))
                zeros += gone * each.width * shapes[name][1]
        tried.append((abs(zeros - target), count, kept))
    return min(tried, key=lambda entry: entry[:2])[2]


@quickly
@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=3
    ),
    st.integers(0, 2**31 - 1),
    st.floats(0, 0.99),
)
def test_one_threshold_brings_zero_weights_nearest_to_the_sparsity(blocks, seed, sparsity):
    generator = torch.Generator().manual_seed(seed)
    units, shapes, scores = [], {}, []
    for index, (groups, sharing, width, channels) in enumerate(blocks):
        rows = groups * sharing * width
        mine = {"q": (rows, 5), "k": (groups * width, 5), "o": (7, rows), "up": (channels, 5), "down": (5, channels)}
        mine = {f"{index}.{name}": shape for name, shape in mine.items()}
        shapes |= mine
        leaders = of_leaders(f"{index}.q {index}.k", f"{index}.o", f"{index}.up", f"{index}.down")
        units += find_units(leaders, mine, Heads(groups * sharing, groups, width))
    scores = [torch.rand(each.count, generator=generator, dtype=torch.float64) for each in units]
    kept = keep_in_model(units, scores, shapes, sparsity)
    wanted = literal_keep(units, [each.tolist() for each in scores], shapes, sparsity)
    assert [kept[each.consumer].tolist() for each in units] == wanted


def test_scores_are_comparable_in_units_of_the_spread_of_their_columns():
    units = Units("heads", 2, 3, "o", {})
    scores = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)).double()
    columns = [sum(scores[:, j].tolist()) / 4 for j in range(6)]
    mean = sum(columns) / 6
    spread = (sum((c - mean) ** 2 for c in columns) / 5) ** 0.5
    wanted = [sum((c - mean) / spread for c in columns[at : at + 3]) / 3 for at in (0, 3)]
    torch.testing.assert_close(units.standardised(scores), torch.tensor(wanted, dtype=torch.float64))
    torch.testing.assert_close(units.standardised(1000 * scores), units.standardised(scores))


def test_equal_scores_and_single_units_break_nothing():
    assert bool(Units("channels", 3, 1, "o", {}).standardised(torch.ones(2, 3)).isfinite().all())
    assert bool(Units("channels", 1, 1, "o", {}).standardised(torch.ones(2, 1)).isfinite().all())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sparsity", [0.2, 0.55])
def test_a_model_is_pruned_by_one_threshold_over_all_its_units(family, method, sparsity):
    case = case_of(family)
    flat = [units for block in range(BLOCKS) for units in units_of(case, block)]
    criterion = parse_criterion(method)
    scores = [units.standardised(criterion.scores(case.matrices.load(units.consumer))).tolist() for units in flat]
    wanted = literal_keep(flat, scores, case.matrices.shapes, sparsity)
    found = case.prune(method, f"{100 * sparsity:g}% structured global", "uniform", "none")
    for units, kept in zip(flat, wanted, strict=True):
        assert found[units.consumer].mask[0].view(units.count, -1)[:, 0].tolist() == kept
    lost = sum(int((~pruned.mask).sum()) for pruned in found.values()) / sum(case.matrices.sizes.values())
    assert sparsity - 0.02 < lost < sparsity + 0.02


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
            if bool(pruned.mask.all()):
                assert pruned.bias is matrix.bias  # nothing to make up for
                continue
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
