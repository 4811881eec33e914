"""Benchmarks of large blocks, run on small ones: they count what they do, and their checks can fail."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import blocks, sparse
from freelunch.plan.facts import Facts

TINY = Facts(
    model_type="llama", num_hidden_layers=1, hidden_size=64, intermediate_size=128, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, vocab_size=256, max_position_embeddings=2048,
)  # fmt: skip


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(blocks.SHAPES, "tiny", TINY)
    return "tiny"


def test_a_window_counts_its_operations_and_its_tokens(tiny: str) -> None:
    streamed = blocks._streamed(tiny)
    for window in blocks.WINDOWS:
        tokens, operations, memory = blocks._trained(tiny, window)
        assert 3 < operations / tokens / (streamed[1] / streamed[0]) < 8  # passes of training and of validation
        assert 0 < memory < 8


def test_a_wrong_result_shows(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (error,) = blocks._differences(tiny).values()
    assert 0 < error < 0.01
    run_block = blocks.Network.run_block
    monkeypatch.setattr(
        blocks.Network, "run_block", lambda self, *given: run_block(self, *given) * (1 + (self.products.itemsize == 2))
    )
    assert blocks._differences(tiny)["bfloat16 on cpu"] > 0.5


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 9))
def test_the_pattern_keeps_the_two_largest_of_four(rows: int, groups: int, seed: int) -> None:
    weight = torch.randn(rows, 4 * groups, generator=torch.Generator().manual_seed(seed))
    kept, lost = (weight.abs().where(sparse.two_of_four(weight) == keep, at) for keep, at in ((1, 9.0), (0, 0.0)))
    assert (sparse.two_of_four(weight).view(-1, 4).sum(-1) == 2).all()
    assert (kept.view(-1, 4).amin(-1) >= lost.view(-1, 4).amax(-1)).all()
