"""The first tokens of a joined text are those of the whole text, and no more documents are read than they need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from freelunch.evaluate.perplexity import FIRST, MARGIN, first_tokens
from freelunch.inputs.models import byte_tokenizer

WORDS = ("alpha", "beta", "gammagamma", "a", "ab", "abab", "ababab", "\n", "  ", "é", "!?", "delta-9")


def sentence(number: int) -> str:
    return " ".join(WORDS[(number * step) % len(WORDS)] for step in range(1, 3 + number % 7))


CORPUS = [sentence(number) for number in range(300)]


def trained(kind: str) -> Tokenizer:
    """Small tokenizers of the kinds that models have."""
    if kind == "bytes":
        return byte_tokenizer().backend_tokenizer
    if kind == "byte-level merges":  # GPT-2, OPT, Llama 3, Qwen: merges within words
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<s>", "</s>"]
        )
    elif kind == "merges over words":  # Llama 2: no words at all, a merge may cross anything
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"])
    else:  # weighs whole sequences
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
        trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    # one token in front of the text, and one behind it, which the first tokens must not have in their midst
    ends = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return tokenizer


KINDS = ("bytes", "byte-level merges", "merges over words", "weighed")
TOKENIZERS = {kind: trained(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(CORPUS) | st.text("ab \n", max_size=30), max_size=400),
    st.sampled_from(["\n\n", " ", ""]),
    st.integers(1, 3000),
)
def test_they_are_those_of_the_whole_text(kind: str, texts: list[str], separator: str, wanted: int) -> None:
    tokenizer = TOKENIZERS[kind]

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text).ids)

    whole = encode(separator.join(texts))
    assert first_tokens(iter(texts), separator, encode, wanted)[:wanted] == whole[:wanted]
    assert first_tokens(iter(texts), separator, encode, None) == whole


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("separator", ["\n\n", " ", ""])
def test_most_of_a_long_text_is_not_needed_for_them(kind: str, separator: str) -> None:
    texts, read = [sentence(7 * number) for number in range(4000)], 0

    def encode(text: str) -> list[int]:
        nonlocal read
        read = len(text)
        return list(TOKENIZERS[kind].encode(text).ids)

    whole = encode(separator.join(texts))
    for wanted in range(1, 700, 31):
        assert first_tokens(iter(texts), separator, encode, wanted)[:wanted] == whole[:wanted]
        assert read < len(separator.join(texts)) / 2


def test_no_more_documents_are_read_than_needed() -> None:
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        for number in range(100_000):
            read += 1
            yield f"document {number:06d}"

    def encode(text: str) -> list[int]:
        return list(text.encode())

    tokens = first_tokens(texts(), "\n\n", encode, 3000)
    assert len(tokens) >= 3000 + MARGIN
    assert read == 256  # 17 bytes each: 64 and 128 documents are too few


def test_a_text_that_is_too_short_is_given_whole() -> None:
    assert first_tokens(iter(["ab", "c"]), "-", lambda text: list(text.encode()), 10**6) == list(b"ab-c")
    assert first_tokens(iter([]), "-", lambda text: [7, *text.encode()], 5) == [7]


@pytest.mark.parametrize("count", [FIRST - 1, FIRST, FIRST + 1, 2 * FIRST, 2 * FIRST + 1])
def test_the_last_documents_are_not_lost(count: int) -> None:
    found = first_tokens(iter(["x"] * count), "", lambda text: list(text.encode()), 10**6)
    assert len(found) == count
