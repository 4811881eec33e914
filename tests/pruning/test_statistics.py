"""Statistics equal literal sums over all tokens, however they came in; the factor of the inverse Hessian is one."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from freelunch.engine.blocks import matrices
from freelunch.engine.overlays import InMemory
from freelunch.engine.streaming import Network
from freelunch.errors import FreelunchError
from freelunch.pruning import hessian, statistics
from freelunch.pruning.matrix import Statistics
from freelunch.pruning.statistics import Collector, add_gram, on_device
from tiny import random_model, random_tokens

ROWS, COLUMNS, TOKENS = 5, 8, 20


def random_inputs(seed=0, tokens=TOKENS, columns=COLUMNS):
    """Of different loudness, and with means that are not 0."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, columns, generator=generator) + torch.randn(columns, generator=generator)
    return inputs * torch.logspace(-1, 1, columns)


def watched(batches, module=None, gram=True):
    module = nn.Linear(COLUMNS, ROWS) if module is None else module
    collector = Collector({"it": module}, gram)
    with collector.watching():
        for batch in batches:
            module(batch)
    return collector.results()["it"]


def block_statistics(family, dtype=torch.float32, batch=4, gram=False):
    """A collector over block 1 of a model, and what the block's linear layers were given, in the order of calls."""
    model = random_model(family, dtype=dtype)
    network = Network(model.config, InMemory(dict(model.state_dict())), dtype)
    hidden = network.embed(random_tokens(4, 12))
    seen: dict[str, list[torch.Tensor]] = {}
    with network.block(1) as block:
        linear = matrices(block)
        collector = Collector(linear, gram)
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


# --- sums ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(TOKENS, COLUMNS), (4, 5, COLUMNS)])
def test_gram_matrices_are_sums_of_products_over_all_tokens(shape):
    inputs = random_inputs()
    gram = watched([inputs.reshape(shape)]).gram
    tokens = inputs.double().tolist()
    literal = [[math.fsum(x[j] * x[k] for x in tokens) for k in range(COLUMNS)] for j in range(COLUMNS)]
    assert gram.dtype == torch.float32
    torch.testing.assert_close(gram, torch.tensor(literal), rtol=1e-5, atol=1e-4)


def test_means_and_variances_are_those_of_all_tokens():
    inputs = random_inputs(1, 31)
    found = watched(inputs.split([1, 10, 20]))
    torch.testing.assert_close(found.means, inputs.double().mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.variances, inputs.double().var(0), rtol=1e-5, atol=0)


def test_one_token_has_no_variance():
    assert watched([random_inputs(tokens=1).round()]).variances.tolist() == [0.0] * COLUMNS


@pytest.mark.parametrize("value", [0.0, 1.0, -64.0, 0.7])
def test_a_constant_input_has_no_variance(value):
    assert watched([torch.full((100, COLUMNS), value)]).variances.tolist() == [0.0] * COLUMNS


@pytest.mark.parametrize("value", [0.1, 2.3])
def test_a_constant_input_whose_square_is_no_float32_has_no_variance(value):
    found = watched([torch.full((100, COLUMNS), value)]).variances
    assert found.max() <= 1e-12 * value**2


def test_variances_of_inputs_far_from_zero_are_those_of_all_tokens():
    inputs = 1000 + random_inputs(0, 200) / 10
    torch.testing.assert_close(watched([inputs]).variances, inputs.double().var(0), rtol=1e-3, atol=0)


def test_sums_keep_what_float32_would_lose():
    # 2^24 + 1 is no float32: in it, a loud token would drown all quiet ones
    inputs = torch.ones(1001, 1)
    inputs[0] = 2.0**12
    found = watched(inputs.split(10), nn.Linear(1, 1))
    assert found.squared_norms.item() == 2**24 + 1000
    inputs[0] = 2.0**24
    assert watched(inputs.split(10), nn.Linear(1, 1)).sums.item() == 2**24 + 1000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_inputs_are_summed_in_more(dtype):
    inputs = (300 * random_inputs(2, 64)).to(dtype)
    found = watched(inputs.split(16), nn.Linear(COLUMNS, ROWS, dtype=dtype))
    exact = inputs.double()
    torch.testing.assert_close(found.sums, exact.sum(0), rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(found.squared_norms, exact.square().sum(0), rtol=1e-6, atol=0)
    wanted = exact.T @ exact
    torch.testing.assert_close(found.gram.double(), wanted, rtol=0, atol=1e-6 * float(wanted.max()))
    assert wanted.max() > 65504


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 7), st.integers(0, 2**31 - 1))
@settings(max_examples=40, deadline=None)
def test_statistics_of_any_batches_are_those_of_all_tokens(sizes, columns, seed):
    inputs = random_inputs(seed, sum(sizes), columns)
    found = watched(inputs.split(sizes), nn.Linear(columns, 2))
    exact = inputs.double()
    assert found.tokens == sum(sizes)
    torch.testing.assert_close(found.sums, exact.sum(0), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(found.squared_norms, exact.square().sum(0), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(found.gram.double(), exact.T @ exact, rtol=1e-4, atol=1e-4)


def test_gradients_are_not_kept():
    module = nn.Sequential(nn.Linear(COLUMNS, COLUMNS), nn.Linear(COLUMNS, ROWS))
    found = watched_all(module, {"0": module[0], "1": module[1]}, random_inputs())["1"]
    assert not found.sums.requires_grad and not found.gram.requires_grad


def watched_all(model, layers, *batches):
    collector = Collector(layers, gram=True)
    with collector.watching():
        for batch in batches:
            model(batch)
    return collector.results()


def test_hooks_are_gone_after_watching_even_when_a_pass_fails():
    module = nn.Linear(COLUMNS, ROWS)
    collector = Collector({"it": module})
    with pytest.raises(RuntimeError), collector.watching():
        module(torch.ones(2, COLUMNS))
        module(torch.ones(2, COLUMNS + 1))
    assert not module._forward_pre_hooks
    module(torch.ones(2, COLUMNS))


# --- layers that read the same tensor --------------------------------------------------------------------------------


class Branches(nn.Module):
    """Layers that are defined in another order than they are called in; ``b`` and ``d`` read what ``c`` reads."""

    def __init__(self):
        super().__init__()
        for name in "abcd":
            setattr(self, name, nn.Linear(COLUMNS, COLUMNS))

    def forward(self, inputs):
        first = self.c(inputs) + self.b(inputs)
        # the values of the inputs, but a tensor of their own
        return self.a(first) + self.d(inputs.clone())

    def layers(self):
        return {name: getattr(self, name) for name in "abcd"}


def test_leaders_come_in_the_order_of_calls():
    model = Branches()
    collector = Collector(model.layers())
    with collector.watching():
        model(random_inputs())
        model(random_inputs(1))
    assert list(collector.leaders.items()) == [("c", "c"), ("b", "c"), ("a", "a"), ("d", "d")]
    assert list(collector.results()) == ["c", "b", "a", "d"]


def test_layers_with_a_common_input_share_one_accumulation_that_counts_every_token_once(monkeypatch):
    model, added = Branches(), []
    monkeypatch.setattr(statistics, "add_gram", lambda gram, rows: added.append(len(rows)) or add_gram(gram, rows))
    batches = [random_inputs(seed, tokens) for seed, tokens in enumerate((5, 1, 9))]
    found = watched_all(model, model.layers(), *batches)
    inputs = torch.cat(batches).double()
    assert added == [5, 5, 5, 1, 1, 1, 9, 9, 9]  # of c, a and d
    assert found["b"] is found["c"] and found["d"] is not found["c"]
    for name in "bcd":
        assert found[name].tokens == 15
        torch.testing.assert_close(found[name].sums, inputs.sum(0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found[name].gram, (inputs.T @ inputs).float(), rtol=1e-5, atol=1e-4)


def test_a_tensor_in_the_place_of_one_that_is_gone_is_not_taken_for_it():
    layers = {name: nn.Linear(COLUMNS, ROWS) for name in "abcde"}
    collector = Collector(layers)
    with collector.watching():
        for value, layer in enumerate(layers.values()):
            layer(torch.full((2, COLUMNS), float(value)))  # freed at once, unless the collector holds it
    assert collector.leaders == {name: name for name in "abcde"}
    assert [found.sums[0].item() for found in collector.results().values()] == [0, 2, 4, 6, 8]


def test_the_factor_of_a_shared_gram_matrix_is_computed_once_for_each_damping(monkeypatch):
    calls, compute = [], hessian.cholesky
    monkeypatch.setattr(hessian, "cholesky", lambda gram, damping: calls.append(damping) or compute(gram, damping))
    model = Branches()
    found = watched_all(model, model.layers(), random_inputs())
    one, other = hessian.inverse_factor(found["b"], 0.01), hessian.inverse_factor(found["c"], 0.01)
    assert one is other and calls == [0.01]
    assert not torch.allclose(hessian.inverse_factor(found["b"], 0.1), one) and calls == [0.01, 0.1]
    hessian.inverse_factor(found["d"], 0.01)
    assert calls == [0.01, 0.1, 0.01]


SHARED = {
    "llama": [{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}, {"mlp.gate_proj", "mlp.up_proj"}],
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
    assert list(collector.leaders) == list(seen)
    shared = [group for group in groups.values() if len(group) > 1]
    assert sorted(map(sorted, shared)) == sorted(map(sorted, SHARED[family]))
    results = collector.results()
    for group in groups.values():
        assert len({id(results[name]) for name in group}) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", SHARED)
def test_every_matrix_of_a_block_gets_the_statistics_of_its_own_inputs(family, dtype):
    collector, seen = block_statistics(family, dtype, batch=3, gram=True)
    results = collector.results()
    assert set(results) == set(seen)
    for name, inputs in seen.items():
        rows = torch.cat([batch.reshape(-1, batch.shape[-1]) for batch in inputs]).double()
        found = results[name]
        assert found.tokens == len(rows) == 48
        torch.testing.assert_close(found.sums, rows.sum(0), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.squared_norms, rows.square().sum(0), rtol=1e-6, atol=0)
        torch.testing.assert_close(found.gram, (rows.T @ rows).float(), rtol=1e-4, atol=1e-4)


# --- where Gram matrices lie -----------------------------------------------------------------------------------------


class Elsewhere(torch.Tensor):
    """A tensor that says it lies on another device: ``cpu:0`` is where all others are, and is not equal to ``cpu``."""

    @property
    def device(self):
        return torch.device("cpu:0")


@pytest.mark.parametrize("panel", [1, 3, 4, 8, 100])
def test_a_gram_matrix_on_another_device_is_added_to_in_panels(monkeypatch, panel):
    monkeypatch.setattr(statistics, "_PANEL", panel)
    inputs = random_inputs(5)
    before = torch.randn(COLUMNS, COLUMNS, generator=torch.Generator().manual_seed(0))
    gram = before.clone().as_subclass(Elsewhere)
    assert gram.device != inputs.device
    add_gram(gram, inputs)
    found = gram.as_subclass(torch.Tensor)
    torch.testing.assert_close(found, (before + inputs.double().T @ inputs.double()).float(), rtol=1e-5, atol=1e-4)
    add_gram(before, inputs)
    torch.testing.assert_close(found, before, rtol=1e-5, atol=1e-4)


def test_a_gram_matrix_lies_with_the_host_where_the_device_has_no_room(monkeypatch):
    module = importlib.import_module("freelunch.pruning.statistics")
    free = 4 * 100**2 * module._COPIES + 1
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10 * free))
    assert module._fits(100, torch.device("cuda")) and not module._fits(101, torch.device("cuda"))
    assert module._fits(10**6, torch.device("cpu"))
    monkeypatch.setattr(module, "_fits", lambda columns, device: False)
    gram = torch.eye(3)
    assert on_device(gram, torch.device("meta")) is gram
    monkeypatch.setattr(module, "_fits", lambda columns, device: True)
    assert on_device(gram, torch.device("meta")).is_meta


# --- the Hessian -----------------------------------------------------------------------------------------------------


def of_gram(gram):
    return Statistics(1, gram.diagonal(), gram.diagonal(), gram)


def literal_hessian(inputs, damping):
    exact = inputs.double()
    found = exact.T @ exact
    mean = float(found.diagonal().mean())
    for j in range(len(found)):
        found[j, j] += damping * mean + (1 if not exact[:, j].any() else 0)
    return found


@given(st.integers(1, 12), st.integers(1, 30), st.sampled_from([0.01, 0.1, 1.0]), st.integers(0, 2**31 - 1), st.data())
@settings(max_examples=60, deadline=None)
def test_the_factor_is_upper_triangular_and_one_of_the_inverse(columns, tokens, damping, seed, data):
    inputs = random_inputs(seed, tokens, columns)
    inputs[:, data.draw(st.lists(st.integers(0, columns - 1), max_size=3))] = 0
    wanted = torch.linalg.inv(literal_hessian(inputs, damping))
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-3)):
        gram = (inputs.double().T @ inputs.double()).to(dtype)
        upper = hessian.inverse_factor(of_gram(gram), damping)
        assert upper.dtype == dtype and not upper.tril(-1).any() and bool((upper.diagonal() > 0).all())
        product = (upper.T @ upper).double()
        torch.testing.assert_close(product, wanted, rtol=0, atol=tolerance * float(wanted.abs().max()))


def test_damping_adds_a_share_of_the_mean_diagonal_and_1_for_dead_inputs():
    inputs = random_inputs()
    inputs[:, [0, 5]] = 0
    gram = inputs.T @ inputs
    before = gram.clone()
    assert hessian.dead(gram).tolist() == [True, *[False] * 4, True, False, False]
    torch.testing.assert_close(hessian.damped(gram, 0.3).double(), literal_hessian(inputs, 0.3), rtol=1e-5, atol=1e-4)
    assert torch.equal(gram, before)


@given(st.integers(1, 10), st.sampled_from([0.01, 0.1]), st.integers(0, 2**31 - 1))
@settings(max_examples=30, deadline=None)
def test_the_cholesky_factor_is_lower_and_one_of_the_damped_hessian(columns, damping, seed):
    inputs = random_inputs(seed, 2 * columns, columns).double()
    lower, used = hessian.cholesky(inputs.T @ inputs, damping)
    assert used == damping and not lower.triu(1).any()
    torch.testing.assert_close(lower @ lower.T, literal_hessian(inputs, damping), rtol=1e-9, atol=1e-9)


def test_the_cholesky_factor_says_how_much_damping_it_took():
    gram = torch.full((6, 6), 1.05)
    gram.fill_diagonal_(1.0)
    lower, used = hessian.cholesky(gram, 0.001)
    assert used == pytest.approx(0.1)
    torch.testing.assert_close(lower @ lower.T, gram + 0.1 * torch.eye(6))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gram_matrix_that_is_not_finite_has_no_factor(bad):
    gram = torch.eye(4)
    gram[1, 2] = bad
    with pytest.raises(FreelunchError, match="contains NaN or infinity"):
        hessian.inverse_factor(of_gram(gram), 0.01)


def test_a_gram_matrix_that_is_far_from_positive_definite_has_no_factor():
    with pytest.raises(FreelunchError, match="not positive definite, not with damping 1"):
        hessian.inverse_factor(of_gram(torch.tensor([[1.0, 5.0], [5.0, 1.0]])), 0.01)
