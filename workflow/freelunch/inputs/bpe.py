"""A byte-level BPE (byte-pair encoding) that is trained on a text; Sennrich et al. 2016, arXiv:1508.07909."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from freelunch.errors import FreelunchError
from freelunch.inputs.models import END


def train_bpe(texts: Iterable[str], size: int) -> Any:
    """A tokenizer of ``size`` entries: one that ends a text, the 256 bytes, and the most frequent pairs, joined.

    Words are split as for GPT-2. The same texts give the same tokenizer.

    Raises:
        FreelunchError: the texts have fewer pairs.
    """
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    found = tokenizer.get_vocab_size()
    if found != size:
        raise FreelunchError(f"the text gives {found} tokens, {size} were asked for; use fewer, or more documents")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def token_bytes(tokenizer: Any) -> Tensor:
    """Bytes of text that each entry of a byte-level tokenizer stands for, ``[vocabulary]``."""
    # the alphabet of such a tokenizer has one character for every byte
    return torch.tensor([len(token) for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])])
