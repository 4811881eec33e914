"""What recovery minimises, against loops over tokens and against transformers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freelunch.recover import losses
from tiny import random_model, random_tokens


def states(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2 + 0.3


def test_losses_of_states_follow_their_definition():
    output, target = states(0, 2, 3, 5), states(1, 2, 3, 5)
    sums = {"mse": 0.0, "normalized_mse": 0.0, "cosine": 0.0}
    for y, t in zip(output.reshape(6, 5).tolist(), target.reshape(6, 5).tolist(), strict=True):
        error, length = sum((a - b) ** 2 for a, b in zip(y, t, strict=True)), sum(b * b for b in t)
        product = sum(a * b for a, b in zip(y, t, strict=True))
        sums["mse"] += error / 5
        sums["normalized_mse"] += error / length
        sums["cosine"] += 1 - product / math.sqrt(length * sum(a * a for a in y))
    assert losses.LOSSES.keys() == sums.keys()
    for name, loss in losses.LOSSES.items():
        assert loss(output, target).item() == pytest.approx(sums[name] / 6, rel=1e-5), name
        assert loss(target, target).item() == pytest.approx(0, abs=1e-6)


def test_cross_entropy_is_the_one_of_transformers():
    model, tokens = random_model("llama"), random_tokens(3, 9)
    with torch.no_grad():
        found = model(input_ids=tokens, labels=tokens)
    assert losses.cross_entropy(found.logits, tokens).item() == pytest.approx(found.loss.item(), rel=1e-6)
    literal = [-found.logits[b, t].double().log_softmax(-1)[tokens[b, t + 1]] for b in range(3) for t in range(8)]
    assert losses.cross_entropy(found.logits, tokens).item() == pytest.approx(sum(literal).item() / 24, rel=1e-6)


@given(st.integers(0, 99), st.floats(0.1, 20))
@settings(max_examples=50)
def test_kl_is_the_divergence_from_the_dense_distribution(seed, spread):
    logits, dense = states(seed, 2, 4, 6) * spread, states(seed + 1000, 2, 4, 6) * spread
    expected = 0.0
    for b in range(2):
        for t in range(3):
            p, q = dense[b, t].double().softmax(-1), logits[b, t].double().softmax(-1)
            expected += sum((a * (a.log() - c.log())).item() for a, c in zip(p, q, strict=True) if a > 0) / 6
    assert losses.kl(logits, dense).item() == pytest.approx(expected, rel=1e-4)
    assert losses.kl(logits, dense).item() >= 0 and losses.kl(dense, dense).item() == 0
    shifted = losses.kl(dense + 3, dense)
    assert shifted.item() == pytest.approx(0, abs=1e-5)
