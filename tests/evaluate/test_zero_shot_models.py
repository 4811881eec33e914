"""Answers of a streamed network, and of one that is whole, must be those of lm-eval's own model class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from freelunch.engine.overlays import InMemory
from freelunch.engine.streaming import Network
from freelunch.errors import FreelunchError
from freelunch.evaluate.lm import StreamingLM, WholeLM
from freelunch.inputs.models import byte_tokenizer
from tiny import random_model, random_tokens

SHORT = {"max_position_embeddings": 64, "vocab_size": 320}
TEXTS = [
    "The old library carries a field of stones.", "A grey heron.", "", "Who built the bridge, and when? Nobody knows.",
    "The river borrows from two long letters, which is a lot for a river to borrow in a single year or two.",
]  # fmt: skip


def pair(family: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Network]:
    """lm-eval's class around a random model, with batches of three, and the same model to be streamed."""
    model = random_model(family, dtype=dtype, **SHORT)
    own = HFLM(pretrained=model, tokenizer=byte_tokenizer(), batch_size=3, softmax_dtype="float32")
    return own, Network(model.config, InMemory(dict(model.state_dict())), dtype)


def streamed(network: Network, state_bytes: int = 20_000, stream_tokens: int = 100) -> StreamingLM:
    """Small enough for several waves, and several batches in each."""
    return StreamingLM(network, byte_tokenizer(), stream_tokens, state_bytes)


def token_requests(model: Any) -> list[tuple[None, list[int], list[int]]]:
    """Contexts and answers of many lengths, among them some that a greedy model gives, and contexts that are cut."""
    found = []
    for number, length in enumerate([1, 2, 5, 9, 9, 17, 30, 62, 63, 64, 70]):
        context = random_tokens(1, length, seed=number, vocabulary=257)[0].tolist()
        for size in (1, 3):
            found.append((None, context, random_tokens(1, size, seed=100 + number, vocabulary=257)[0].tolist()))
            greedy = list(context)
            for _ in range(size):
                with torch.no_grad():
                    greedy.append(int(model(torch.tensor([greedy[-64:]])).logits[0, -1].argmax()))
            found.append((None, context, greedy[length:]))
    return found


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=each, idx=i) for i, each in enumerate(arguments)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma2", "opt", "mistral"])
def test_log_likelihoods_are_those_of_lm_eval_streamed_and_whole_and_streamed_again(
    family: str, dtype: torch.dtype
) -> None:
    own, network = pair(family, dtype)
    requests = token_requests(own.model)
    expected = own._loglikelihood_tokens(requests, disable_tqdm=True)
    model = streamed(network)
    assert len(list(model._waves([tuple(context + answer) for _, context, answer in requests]))) > 2
    found = model._loglikelihood_tokens(requests, disable_tqdm=True)
    greedy = [each for _, each in expected]
    assert any(greedy) and not all(greedy)
    if dtype == torch.float32:  # of two tokens that are as likely in 8 bits, batches of other shapes prefer others
        assert [each for _, each in found] == greedy
    tolerance = {"abs": 2e-4} if dtype == torch.float32 else {"rel": 0.01, "abs": 0.05}
    values = [value for value, _ in expected]
    assert [value for value, _ in found] == pytest.approx(values, **tolerance)
    with network.whole() as held:
        whole = WholeLM(held, byte_tokenizer(), stream_tokens=100)
        assert [value for value, _ in whole._loglikelihood_tokens(requests, disable_tqdm=True)] == pytest.approx(
            values, **tolerance
        )
        assert whole.batch_size == 1  # the longest request has 73 tokens
    assert all(parameter.is_meta for block in network.blocks for parameter in block.parameters())
    assert model._loglikelihood_tokens(requests, disable_tqdm=True) == found


def test_a_bias_that_an_overlay_adds_is_in_the_whole_model() -> None:
    model = random_model("llama", **SHORT)
    state, requests = dict(model.state_dict()), token_requests(model)[:8]
    biased = Network(model.config, InMemory(state | {"model.layers.1.mlp.down_proj.bias": torch.ones(32)}), model.dtype)
    found, plain = (
        [value for value, _ in streamed(network)._loglikelihood_tokens(requests, disable_tqdm=True)]
        for network in (biased, Network(model.config, InMemory(state), model.dtype))
    )
    with biased.whole() as whole:
        held = WholeLM(whole, byte_tokenizer(), 100)._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [value for value, _ in held] == pytest.approx(found, abs=2e-4)
    assert max(abs(one - other) for one, other in zip(found, plain, strict=True)) > 0.1


def beginning_tokenizer() -> Any:
    """One that merges bytes, and puts a token of its own before every text: as those of Llama do."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e"), ("e", "r"), ("i", "n"), ("y", "e")]
    known = [*alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(BPE(vocab={symbol: token for token, symbol in enumerate(known)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<begin>", "<end>"])
    begin = ("<begin>", tokenizer.token_to_id("<begin>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<begin> $A", special_tokens=[begin])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<begin>", eos_token="<end>")


@pytest.mark.parametrize("begins", [False, True], ids=["bytes", "a first token"])
def test_texts_are_read_as_lm_eval_reads_them(begins: bool) -> None:
    tokenizer, model = beginning_tokenizer() if begins else byte_tokenizer(), random_model("llama", **SHORT)
    own = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, softmax_dtype="float32")
    network = Network(model.config, InMemory(dict(model.state_dict())), torch.float32)
    found = StreamingLM(network, tokenizer, 100, 20_000)
    first = "<begin>" if begins else "<|endoftext|>"
    for text in (*TEXTS, f"{first}The bridge", "the other ye"):
        assert found.tok_encode(text) == own.tok_encode(text)
        assert not begins or found.tok_encode(text).count(tokenizer.bos_token_id) == 1
    asked = [(text, answer) for text in (*TEXTS, f"{first}The bridge") for answer in (" the yes", "no")]
    pairs = instances("loglikelihood", [*asked, ("trailing  ", "space")])
    expected = [value for value, _ in own.loglikelihood(pairs, disable_tqdm=True)]
    assert [value for value, _ in found.loglikelihood(pairs, True)] == pytest.approx(expected, abs=2e-4)
    rolling = instances("loglikelihood_rolling", [(text,) for text in TEXTS if text])
    whole = own.loglikelihood_rolling(rolling, disable_tqdm=True)
    assert found.loglikelihood_rolling(rolling, True) == pytest.approx(whole, abs=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
def test_greedy_answers_are_those_of_lm_eval(family: str) -> None:
    own, network = pair(family)
    free = {"until": [], "max_gen_toks": 9}
    asked = instances("generate_until", [(text, free) for text in TEXTS if text])
    expected = own.generate_until(asked, disable_tqdm=True)
    assert streamed(network).generate_until(asked, True) == expected and len(set(expected)) > 1
    stop = next(text for text in expected if len(text) > 3)[2]
    asked = instances("generate_until", [(text, {"until": [stop], "max_gen_toks": 9}) for text in TEXTS if text])
    stopped = own.generate_until(asked, disable_tqdm=True)
    assert streamed(network).generate_until(asked, True) == stopped != expected
    with network.whole() as model:
        assert WholeLM(model, byte_tokenizer(), 100).generate_until(asked) == stopped


def test_what_cannot_be_answered_is_said() -> None:
    own, network = pair("llama")
    model = streamed(network)
    for options, message in (
        ({"do_sample": True, "temperature": 1.0}, "use execution.zero_shot: whole"),
        ({"max_gen_toks": 64}, "answers of 64 tokens, and the context of the model is 64"),
    ):
        with pytest.raises(FreelunchError, match=message):
            model.generate_until(instances("generate_until", [("a", options)]), True)
    with pytest.raises(FreelunchError, match="an answer of 65 tokens exceeds the context, 64"):
        model._loglikelihood_tokens([(None, [1], [2] * 65)], disable_tqdm=True)
    state = dict(own.model.state_dict())
    state["lm_head.weight"] = torch.full_like(state["lm_head.weight"], torch.nan)
    broken = streamed(Network(own.model.config, InMemory(state), torch.float32))
    with pytest.raises(FreelunchError, match="log-likelihood of an answer is NaN or infinite"):
        broken._loglikelihood_tokens([(None, [1, 2], [3])], disable_tqdm=True)


def test_states_of_a_wave_stay_within_their_memory() -> None:
    network = pair("llama")[1]
    inputs = [tuple(range(length)) for length in (3, 60, 17, 9, 40, 2, 33, 8, 8, 8)]
    model = streamed(network, state_bytes=64 * 32 * 4, stream_tokens=64)
    waves = list(model._waves(inputs))
    assert sorted(index for wave in waves for batch in wave for index in batch) == list(range(len(inputs)))
    for wave in waves:
        shapes = [model._padded([inputs[index] for index in batch]).shape for batch in wave]
        assert sum(rows * length for rows, length in shapes) <= 64
        assert all(rows * length <= 64 for rows, length in shapes)
