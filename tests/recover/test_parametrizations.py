"""What is trained: formulas against loops, which parameters a part trains, and what is saved of them."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from freelunch.engine.blocks import call_block, find_halves, matrices, part_parameters
from freelunch.engine.overlays import InMemory, Replaced
from freelunch.engine.streaming import Network
from freelunch.errors import FreelunchError
from freelunch.plan.specs import Training
from freelunch.recover.parametrizations import PARAMETRIZATIONS, canonical_parametrization, parse_parametrization
from freelunch.recover.trainable import Trainable
from tiny import magnitude_masks, masked, random_model

FAMILIES = ["llama", "opt", "gemma2"]
LOW_RANK = ["lora_prune", "mask_lora", "scale_lora", "spp"]
RANK = 5  # divides no width of the tiny models; of the 16 rows of a key matrix, SPP can use but 4 of its factor
PARTS = ["full", *(f"{name}(rank={RANK})" for name in LOW_RANK)]
EXTRAS = ["biases + norms", "biases(add=1)"]
EVERY = [*PARTS, *(f"{part} + {extra}" for part in PARTS for extra in EXTRAS), "biases", "norms", "biases(add=1)"]
SOME = [*EVERY[5:7], f"mask_lora(rank={RANK}) + biases(add=1)", "biases(add=1)"]
SCOPES = [("attention", "all"), ("block", "q_proj + down_proj + fc2")]
BLOCKS = [(family, text) for family in FAMILIES for text in EVERY if (family, text) != ("llama", "biases")
          and (family, text) != ("gemma2", "biases")]  # fmt: skip
CASES = [*((*each, "block", "all") for each in BLOCKS),
         *((family, text, *scope) for family in FAMILIES for text in SOME for scope in SCOPES)]  # fmt: skip
INDEX, SHAPE, STEPS = 1, (2, 7), 4


# --- formulas --------------------------------------------------------------------------------------------------------


def literal(name, weight, mask, down, up, rank, scale):
    """What training computes with, and what is saved, number by number."""
    rows, columns = weight.shape
    effective, merged = torch.empty(rows, columns), torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            w, m = weight[i, j].item(), float(mask[i, j])
            if name == "spp":
                repeats = -(-rows // rank)
                value = w + scale * down[i // repeats, j].item() * up[i, 0].item() * w
            else:
                product = sum(up[i, k].item() * down[k, j].item() for k in range(rank))
                value = {"lora_prune": w + scale * product, "mask_lora": w + scale * product * m,
                         "scale_lora": w * product}[name]  # fmt: skip
            effective[i, j] = value
            merged[i, j] = value * m
    return effective, merged


@pytest.mark.parametrize("name", LOW_RANK)
@given(rows=st.integers(1, 9), columns=st.integers(1, 6), rank=st.integers(1, 7), alpha=st.sampled_from([0.5, 32.0]),
       seed=st.integers(0, 99))  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_low_rank_weights_follow_their_formula_and_start_at_the_weight(name, rows, columns, rank, alpha, seed):
    scaled = "" if name == "scale_lora" else f", alpha={alpha}"
    (method,) = parse_parametrization(f"{name}(rank={rank}{scaled})")
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, columns, generator=generator) > 0.4
    weight = torch.randn(rows, columns, generator=generator) * mask
    down, up = method.factors(rows, columns, generator)
    assert torch.equal(method.effective(weight, mask, down, up), weight)
    assert torch.equal(method.merged(weight, mask, down, up), weight)
    down, up = (torch.randn(factor.shape, generator=generator) for factor in (down, up))
    effective, merged = literal(name, weight, mask, down, up, rank, alpha / rank)
    torch.testing.assert_close(method.effective(weight, mask, down, up), effective, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(method.merged(weight, mask, down, up), merged, rtol=1e-5, atol=1e-5)
    assert method.exact == (name != "lora_prune")
    assert not method.exact or torch.equal(effective, merged)


def test_the_scales_of_scale_lora_grow_in_rank():
    """They would not if all ranks started alike, as they do in the official code."""
    generator = torch.Generator().manual_seed(0)
    weight, goal = torch.randn(12, 8, generator=generator), torch.randn(12, 8, generator=generator)
    (method,) = parse_parametrization("scale_lora(rank=4)")
    symmetric = (torch.ones(4, 8), torch.full((12, 4), 0.25))
    ranks = []
    for down, up in (method.factors(12, 8, generator), symmetric):
        down, up = nn.Parameter(down), nn.Parameter(up)
        optimizer = torch.optim.SGD([down, up], lr=0.1)
        for _ in range(20):
            optimizer.zero_grad()
            (method.effective(weight, torch.ones(12, 8).bool(), down, up) - goal).square().mean().backward()
            optimizer.step()
        ranks.append(int(torch.linalg.matrix_rank((up @ down).double(), rtol=1e-4)))
    assert ranks == [4, 1]


# --- on blocks -------------------------------------------------------------------------------------------------------


@cache
def case_of(family, dtype=torch.float32):
    """A tiny model, half of every matrix but one pruned in each block, and the network that reads it pruned."""
    model = random_model(family, dtype=dtype)
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prefix = Network(model.config, InMemory(dense), dtype).prefix
    masks = {
        name: mask
        for name, mask in magnitude_masks(dense, prefix).items()
        if not name.endswith(("o_proj.weight", "out_proj.weight"))
    }
    source = masked(dense, masks)
    network = Network(model.config, source, dtype)
    return SimpleNamespace(config=model.config, dense=dense, masks=masks, source=source, network=network, dtype=dtype)


def enter(case, block, training, inside=None):
    inside = {key for key, _ in block.named_parameters()} if inside is None else inside
    return Trainable([(case.network.block_name(INDEX), block, inside)], case.masks.get, training, case.dtype)


def forward(case, block):
    """Output of the block on given states, products in bfloat16 unless the model is a float32 one."""
    hidden = torch.randn(*SHAPE, 32, generator=torch.Generator().manual_seed(5))
    with torch.autocast("cpu", torch.bfloat16, enabled=case.dtype != torch.float32):
        return call_block(block, hidden, case.network.calls(*SHAPE)[INDEX])


@cache
def trained(family, parametrization, scope="block", targets="all", dtype=torch.float32):
    """Some optimiser steps on a block, and all there is to say about them."""
    case = case_of(family, dtype)
    network = case.network
    with network.block(INDEX) as block:
        linear = {f"{name}.{kind}" for name in matrices(block) for kind in ("weight", "bias")}
        halves = find_halves(block, network.embed(torch.full(SHAPE, 7)), network.calls(*SHAPE)[INDEX])
        found = SimpleNamespace(names=[key for key, _ in block.named_parameters()], linear=linear)
        found.inside, found.prefix = set(part_parameters(block, scope, halves)), network.block_name(INDEX)
        trainable = enter(case, block, Training(parametrization=parametrization, targets=targets), set(found.inside))
        found.count, found.exact, found.start = trainable.count, trainable.exact, trainable.state()
        optimizer = torch.optim.AdamW(trainable.parameters.values(), lr=0.01, weight_decay=0)
        for _ in range(STEPS):
            forward(case, block).float().square().mean().backward()
            trainable.mask_gradients()
            optimizer.step()
            optimizer.zero_grad()
        found.state = trainable.state()
        with torch.no_grad():
            found.training = forward(case, block)
            with trainable.saved(found.state):
                found.saved = forward(case, block)
            assert torch.equal(forward(case, block), found.training)  # what is trained is back
        trainable.check(found.state)
        found.frozen = {key: tensor.detach().clone() for key, tensor in block.named_parameters()}
        trainable.close()
        assert not any(parametrize.is_parametrized(module) for module in block.modules())
        assert sorted(key for key, _ in block.named_parameters()) == sorted(found.names)
    fresh = Network(case.config, Replaced(case.source, InMemory(found.state)), dtype)
    with fresh.block(INDEX) as block, torch.no_grad():
        found.loaded = forward(case, block.float())
    for _ in range(2):
        with network.block(INDEX) as block:  # reads what it read before
            for key, tensor in block.named_parameters():
                assert torch.equal(tensor, case.source.load(f"{found.prefix}.{key}")), key
    return found


def wanted(found, parametrization, targets):
    """Names of what should be trained, told by the text of the parametrization."""
    names = set()
    for key in found.inside:
        owner, _, kind = key.rpartition(".")
        chosen = targets == "all" or owner.split(".")[-1] in targets.split(" + ")
        if key not in found.linear:
            names |= {key} if "norms" in parametrization else set()
        elif kind == "weight" and chosen:
            names |= {key} if parametrization.split(" +")[0] in PARTS else set()
            names |= {f"{owner}.bias"} if "biases(add=1)" in parametrization else set()
        elif chosen and "biases" in parametrization:
            names.add(key)
    return names


def numbers(parametrization, tensor, mask):
    """How many numbers are trained of a tensor."""
    if tensor.ndim == 1:
        return tensor.numel()
    rows, columns = tensor.shape
    if parametrization.startswith("full"):
        return tensor.numel() if mask is None else int(mask.sum())
    if parametrization.startswith("spp"):
        return len({row // -(-rows // RANK) for row in range(rows)}) * columns + rows
    return RANK * (rows + columns)


@pytest.mark.parametrize(("family", "parametrization", "scope", "targets"), CASES)
def test_what_is_named_is_trained_and_nothing_else(family, parametrization, scope, targets):
    found, case = trained(family, parametrization, scope, targets), case_of(family)
    assert {f"{found.prefix}.{key}" for key in wanted(found, parametrization, targets)} == found.state.keys()
    for name, tensor in found.state.items():
        start = case.source.load(name) if name in case.source else torch.zeros(len(tensor))
        assert torch.equal(found.start[name], start), name
        assert not torch.equal(tensor, start), f"{name} was not trained"
        assert name not in case.masks or not tensor[~case.masks[name]].any(), f"{name}: a pruned weight is back"
    for key, tensor in found.frozen.items():
        name = f"{found.prefix}.{key}"
        if name in case.source and name not in found.state:
            assert torch.equal(tensor, case.source.load(name)), f"{name} should not have changed"
    counted = [numbers(parametrization, tensor, case.masks.get(name)) for name, tensor in found.state.items()]
    assert found.count == sum(counted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("family", "parametrization"), BLOCKS)
def test_a_block_with_the_saved_tensors_computes_what_was_validated(family, parametrization, dtype):
    if dtype == torch.bfloat16 and "norms" not in parametrization:
        return
    found = trained(family, parametrization, dtype=dtype)
    assert all(tensor.dtype == dtype for tensor in found.state.values())
    assert torch.equal(found.saved, found.loaded)
    assert found.exact == (not parametrization.startswith("lora_prune"))
    if not found.exact:
        assert not torch.allclose(found.saved, found.training, rtol=0.05, atol=0.05)
    elif dtype == torch.float32:
        assert torch.equal(found.saved, found.training)
    else:  # norms and biases are rounded when they are saved
        torch.testing.assert_close(found.saved, found.training, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("part", PARTS)
def test_every_number_that_counts_has_a_gradient(part):
    """Of a function of all weights; without a mask, since one that spares no weight of a scale's leaves it idle."""
    case = case_of("llama")
    network = Network(case.config, InMemory(case.dense), torch.float32)
    with network.block(INDEX) as block:
        inside, name = {key for key, _ in block.named_parameters()}, network.block_name(INDEX)
        layers, mask_of = matrices(block).values(), case.masks.get if part == "full" else lambda _: None
        trainable = Trainable([(name, block, inside)], mask_of, Training(parametrization=part), torch.float32)
        for parameter in trainable.parameters.values():
            parameter.data += torch.rand(parameter.shape, generator=torch.Generator().manual_seed(0))
        sum(layer.weight.cos().sum() for layer in layers).backward()
        trainable.mask_gradients()
        moved = sum(int(parameter.grad.count_nonzero()) for parameter in trainable.parameters.values())
        assert trainable.count == moved
        trainable.close()


@pytest.mark.parametrize("part", [f"{part} + biases(add=1) + norms" for part in PARTS])
def test_training_writes_nothing_to_a_source_that_is_not_masked(part):
    case = case_of("opt")
    kept = {name: tensor.clone() for name, tensor in case.dense.items()}
    network = Network(case.config, InMemory(case.dense), torch.float32)
    with network.block(INDEX) as block:
        trainable = enter(case, block, Training(parametrization=part))
        for parameter in trainable.parameters.values():
            parameter.data.add_(1)
        with trainable.saved(trainable.state()):
            pass
        trainable.close()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in case.dense.items())


def test_an_added_bias_comes_back_with_the_overlay():
    """A block that was trained with added biases is read again with them, by the network that trained it."""
    case, overlay, found = case_of("llama"), {}, trained("llama", "biases(add=1)")
    network = Network(case.config, Replaced(case.source, InMemory(overlay)), torch.float32)
    with network.block(INDEX) as block:
        enter(case, block, Training(parametrization="biases(add=1)")).close()
    overlay |= found.state
    with network.block(INDEX) as block:
        assert torch.equal(block.self_attn.q_proj.bias, found.state[f"{found.prefix}.self_attn.q_proj.bias"])


def test_factors_depend_on_the_seed_and_the_name_alone():
    case = case_of("llama")

    def factors(seed, targets):
        with case.network.block(INDEX) as block:
            training = Training(parametrization="mask_lora(rank=2)", seed=seed, targets=targets)
            trainable = enter(case, block, training)
            found = {key: each.detach().clone() for key, each in trainable.parameters.items() if key.endswith(".down")}
            trainable.close()
        return found

    one, reseeded, fewer = factors(0, "all"), factors(1, "all"), factors(0, "up_proj")
    assert all(torch.equal(one[key], tensor) for key, tensor in fewer.items()) and len(fewer) == 1
    assert len({tuple(tensor.flatten().tolist()) for tensor in (*one.values(), *reseeded.values())}) == 14


def test_a_weight_that_came_back_is_noticed():
    case = case_of("llama")
    with case.network.block(INDEX) as block:
        trainable, name = enter(case, block, Training()), f"{case.network.block_name(INDEX)}.self_attn.q_proj.weight"
        state, (first, second) = trainable.state(), (~case.masks[name]).nonzero()[:2].tolist()
        trainable.check(state)
        state[name][tuple(first)], state[name][tuple(second)] = 1e-30, float("nan")
        with pytest.raises(FreelunchError, match=f"^2 pruned weights of {name} are not zero$"):
            trainable.check(state)
        trainable.close()


# --- parsing ---------------------------------------------------------------------------------------------------------


def test_a_parametrization_has_one_way_to_be_written():
    assert set(PARAMETRIZATIONS.names) == {"full", "biases", "norms", *LOW_RANK}
    texts = ["norms+biases( add = 1 )+mask_lora(rank=8, alpha=32)", "mask_lora(rank=8) + biases(add=1) + norms"]
    assert {canonical_parametrization(text) for text in texts} == {"mask_lora(rank=8) + biases(add=1) + norms"}
    assert canonical_parametrization("norms + full + biases(add=0)") == "full + biases + norms"
    assert canonical_parametrization("spp(alpha=1e+2)+norms") == "spp(alpha=100) + norms"
    assert [part.matrices for part in parse_parametrization("norms + spp")] == [True, False]


@pytest.mark.parametrize(("text", "message"), [
    ("full + mask_lora", "only one part can train the matrices"),
    ("spp + scale_lora + norms", "only one part can train the matrices"),
    ("biases + biases(add=1)", "a part is there twice"),
    ("mask_lroa", "there is no parametrization 'mask_lroa'; did you mean 'mask_lora'"),
    ("full + norm", "there is no parametrization 'norm'; did you mean 'norms'"),
    ("parametrization", "there is no parametrization 'parametrization'"),
    ("mask_lora(ranks=3)", "there is no setting 'ranks'; did you mean 'rank'"),
    ("mask_lora(rank=2.5)", "rank is a whole number, not 2.5"),
    ("mask_lora(rank=0)", "rank must be above 0, not 0"),
    ("spp(alpha=-1)", "alpha must be above 0, not -1"),
    ("biases(add=2)", "add is 0 or 1, not 2"),
    ("full(rank=3)", "full has no settings"),
    ("full +", "is no parametrization"),
    ("", "is no parametrization"),
    (3, "3 is no parametrization"),
])  # fmt: skip
def test_what_cannot_be_read_is_explained(text, message):
    with pytest.raises(FreelunchError) as error:
        parse_parametrization(text)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_nothing_to_train_is_an_error_that_says_of_what():
    with pytest.raises(FreelunchError, match="parametrization biases finds nothing to train"):
        trained("llama", "biases", "block", "all")
