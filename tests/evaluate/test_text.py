"""The first tokens of a joined text are those of the whole text, and no more documents are read than they need."""

from __future__ import annotations

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
@settings(max_examples=20, deadline=None)
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
def test_most_of_a_long_text_is_not_needed_for_them(kind: str) -> None:
    texts, read = [sentence(7 * number) for number in range(4000)], 0

    def encode(text: str) -> list[int]:
        nonlocal read
        read = len(text)
        return list(TOKENIZERS[kind].encode(text).ids)

    for separator in ("\n\n", " ", ""):
        whole = encode(separator.join(texts))
        for wanted in range(1, 700, 97):
            assert first_tokens(iter(texts), separator, encode, wanted)[:wanted] == whole[:wanted]
            assert read < len(separator.join(texts)) / 2


def test_no_more_documents_are_read_than_needed_and_the_last_are_not_lost() -> None:
    def encode(text: str) -> list[int]:
        return list(text.encode())

    texts = iter([f"document {number:06d}" for number in range(1000)])
    assert len(first_tokens(texts, "\n\n", encode, 3000)) >= 3000 + MARGIN
    assert next(texts) == "document 000256"  # 17 bytes each: 64 and 128 documents are too few
    for count in (0, 1, FIRST - 1, FIRST, FIRST + 1, 2 * FIRST, 2 * FIRST + 1):
        assert first_tokens(iter(["x"] * count), "-", encode, 10**6) == encode("-".join("x" * count))
