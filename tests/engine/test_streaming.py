"""Streaming a model block by block must give what the whole model gives."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from freelunch.engine.blocks import call_block, find_halves, matrices, part_parameters, run_part
from freelunch.engine.device import products
from freelunch.engine.overlays import InMemory
from freelunch.engine.streaming import Network
from freelunch.errors import FreelunchError
from tiny import FAMILIES, random_model, random_tokens


def network_of(model, dtype=torch.float32, products=None):
    return Network(model.config, InMemory(dict(model.state_dict())), dtype, products=products)


def streamed_logits(network, tokens):
    hidden = network.embed(tokens)
    for index in range(len(network.blocks)):
        with network.block(index) as block:
            hidden = network.run_block(index, block, hidden)
    with network.head() as head:
        return head(hidden)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_logits_equal_the_full_forward(family, dtype):
    model = random_model(family, dtype=dtype)
    tokens = random_tokens(3, 24)
    with torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).logits
    assert not torch.equal(expected[0], expected[1])  # batch entries differ, so a mixed-up batch would show
    assert torch.equal(streamed_logits(network_of(model, dtype), tokens), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_products_in_float32_are_those_of_the_rounded_weights(family):
    model = random_model(family)  # has more digits than the dtype
    network = network_of(model, torch.bfloat16, products=torch.float32)
    rounded = random_model(family, dtype=torch.bfloat16)
    rounded.load_state_dict(model.state_dict())
    tokens = random_tokens(3, 24)
    with torch.no_grad():
        expected = rounded.float()(input_ids=tokens, use_cache=False).logits
    found = streamed_logits(network, tokens)
    assert found.dtype == torch.float32 and network.embed(tokens).dtype == torch.float32
    assert torch.equal(found, expected)
    # states of the dtype, as they are kept, are taken as well
    with network.block(0) as block:
        hidden = network.embed(tokens).bfloat16()
        assert torch.equal(network.run_block(0, block, hidden), network.run_block(0, block, hidden.float()))


def test_products_are_in_float32_where_a_cpu_has_no_faster_ones(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for able, found in (({"avx512_bf16": True}, torch.bfloat16), ({"avx512_bf16": False}, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert products(torch.bfloat16, cpu) == found
        assert products(torch.float16, cpu) == torch.float32
        assert products(torch.bfloat16, cuda) == torch.bfloat16 and products(torch.float16, cuda) == torch.float16
        for device in (cpu, cuda):
            assert products(torch.bfloat16, device, "float32") == products(torch.float32, device) == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_halves_in_a_row_equal_the_block(family):
    network = network_of(random_model(family))
    hidden = network.embed(random_tokens(3, 24))
    with network.block(0) as block:
        call = network.calls(3, 24)[0]
        halves = find_halves(block, hidden, call)
        middle = run_part(block, "attention", halves, hidden, call)
        assert not torch.equal(middle, hidden)
        assert torch.equal(run_part(block, "mlp", halves, middle, call), call_block(block, hidden, call))
        first, second = (part_parameters(block, part, halves) for part in ("attention", "mlp"))
        assert sorted(first + second) == sorted(part_parameters(block, "block", None))
        linear = set(matrices(block))
        assert {name for name in linear if f"{name}.weight" in first} == {n for n in linear if "attn" in n}
        # gradients of a half stay in the half
        block.requires_grad_(True)
        for part, names in (("attention", first), ("mlp", second)):
            block.zero_grad(set_to_none=True)
            run_part(block, part, halves, hidden, call).square().mean().backward()
            gradients = {name: value.grad for name, value in block.named_parameters() if value.grad is not None}
            assert set() < {name for name, gradient in gradients.items() if gradient.any()} <= set(names)


def test_a_parallel_block_is_refused():
    config = AutoConfig.for_model(
        "gpt_neox", vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    network = network_of(model)
    tokens = random_tokens(2, 8)
    with torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).logits
    assert torch.equal(streamed_logits(network, tokens), expected)
    with network.block(0) as block, pytest.raises(FreelunchError, match="use window: block"):
        find_halves(block, network.embed(tokens), network.calls(2, 8)[0])


def test_only_one_block_is_in_memory():
    network = network_of(random_model("llama"))
    with network.block(1):
        loaded = [any(not p.is_meta for p in block.parameters()) for block in network.blocks]
    assert loaded == [False, True, False]
    assert all(p.is_meta for block in network.blocks for p in block.parameters())
