"""Streamed perplexity equals the perplexity of the whole model, computed token by token."""

from __future__ import annotations

import math

import pytest
import torch

from freelunch.engine.overlays import InMemory
from freelunch.engine.streaming import Network
from freelunch.errors import FreelunchError
from freelunch.evaluate.perplexity import cut, perplexities
from tiny import random_model, random_tokens


def network_of(model, dtype=torch.float32):
    return Network(model.config, InMemory(dict(model.state_dict())), dtype)


def literal(model, windows):
    """Mean negative log-likelihood of every window, from log-probabilities looked up one at a time."""
    means = []
    for row in windows:
        with torch.no_grad():
            logits = model(input_ids=row.unsqueeze(0), use_cache=False).logits[0].double()
        likelihoods = []
        for at in range(len(row) - 1):
            exponentials = [math.exp(x) for x in logits[at].tolist()]
            likelihoods.append(math.log(exponentials[int(row[at + 1])] / math.fsum(exponentials)))
        means.append(-math.fsum(likelihoods) / len(likelihoods))
    return means


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["llama", "opt", "gemma2"])
def test_streamed_perplexity_is_that_of_the_whole_model_with_the_error_of_its_mean(family, dtype):
    model = random_model(family, dtype=dtype)
    windows = random_tokens(5, 10)
    # batches of one sequence, as in the reference: in bfloat16 others may round differently
    found = perplexities(network_of(model, dtype), {"text": windows}, stream_tokens=10)["text"]
    means = literal(model, windows)
    mean = sum(means) / 5
    deviation = math.sqrt(sum((each - mean) ** 2 for each in means) / 4)
    assert found.value == pytest.approx(math.exp(mean), rel=1e-6)
    assert found.stderr == pytest.approx(math.exp(mean) * deviation / math.sqrt(5), rel=1e-4)
    assert (found.windows, found.tokens) == (5, 5 * 9)


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2"])
def test_the_batch_size_does_not_matter_and_one_window_has_no_error(family):
    network = network_of(random_model(family))
    windows = {"text": random_tokens(7, 12)}
    values = [perplexities(network, windows, tokens)["text"].value for tokens in (1, 36, 1000)]
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)
    assert math.isnan(perplexities(network, {"text": random_tokens(1, 8)}, 100)["text"].stderr)


def test_several_sets_of_windows_in_one_pass_are_measured_as_if_alone():
    network = network_of(random_model("llama"))
    windows = {"short": random_tokens(3, 8), "long": random_tokens(2, 20, seed=1), "other": random_tokens(5, 8, seed=2)}
    together = perplexities(network, windows, 16)
    assert list(together) == list(windows)
    for name, tokens in windows.items():
        assert together[name] == perplexities(network, {name: tokens}, 16)[name]
    assert len({result.value for result in together.values()}) == 3


def test_extreme_logits_give_the_vocabulary_a_huge_finite_number_or_an_error_with_the_text():
    model, windows = random_model("llama"), {"books test @ 8": random_tokens(2, 8)}
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
        assert 1e100 < perplexities(network_of(model), windows, 100)["books test @ 8"].value < math.inf
        model.lm_head.weight.zero_()
        (found,) = perplexities(network_of(model), windows, 100).values()
        assert found.value == pytest.approx(64, rel=1e-6) and found.stderr == pytest.approx(0, abs=1e-4)
        model.model.norm.weight[3] = float("nan")
    with pytest.raises(FreelunchError, match=r"perplexity of books test @ 8: .* NaN or infinite"):
        perplexities(network_of(model), windows, 100)


def test_texts_are_cut_into_windows_without_overlap_and_the_rest_is_dropped():
    assert cut(range(11), 4, None, "text").tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert cut(range(11), 4, 1, "text").tolist() == [[0, 1, 2, 3]]
    assert cut(range(8), 4, 2, "text").tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(("tokens", "sequences", "asked"), [(11, 3, 3), (3, None, 1), (0, None, 1), (3, 1, 1)])
def test_a_text_that_is_too_short_is_refused_with_what_it_has(tokens, sequences, asked):
    with pytest.raises(FreelunchError, match=rf"^books: has {tokens} tokens, {asked} windows of 4 were asked for"):
        cut(range(tokens), 4, sequences, "books")
