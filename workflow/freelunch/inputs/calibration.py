"""Calibration crops: sequences of exactly ``length`` tokens from the documents of a data set. Reads no files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from freelunch.errors import FreelunchError
from freelunch.inputs.documents import Document

TRIES = 20_000
"""Draws for one crop before it is given up that any document is long enough. Of C4 one in 30 has 2048 tokens, and far
fewer have 4096; what was drawn before is not tokenised again."""


class Crops(NamedTuple):
    """Tokens ``[sequences, length]``, int32, and for each sequence the identifiers of its documents, in order."""

    tokens: Tensor
    documents: list[list[str]]


def sample(
    documents: Sequence[Document],
    tokenizer: Any,
    *,
    sequences: int,
    length: int,
    sampling: Literal["document", "packed"],
    seed: int,
    separator: str = "\n\n",
    name: str = "the data set",
) -> Crops:
    """Draw ``sequences`` crops of ``length`` tokens; the same arguments give the same crops on every machine.

    Args:
        documents: where the crops come from.
        tokenizer: a Hugging Face tokenizer.
        sequences: number of crops.
        length: tokens per crop.
        sampling: ``document``: documents are drawn with replacement until one has more than ``length`` tokens, and cut
            at a random start. ``packed``: documents are shuffled and joined by ``separator``, and cut one crop after
            the other, so that no token is used twice.
        seed: of the generator, which nothing else uses.
        separator: text between documents that are joined.
        name: of the data set, in messages.

    Raises:
        FreelunchError: no document is long enough, or the data set is too short.
    """
    if not documents:
        raise FreelunchError(f"{name} has no documents to draw from")
    generator = torch.Generator().manual_seed(seed)
    draw = _whole if sampling == "document" else _packed
    with tqdm(total=sequences, desc=name, unit="crop", file=sys.stderr) as progress:
        return draw(documents, tokenizer, sequences, length, generator, separator, name, progress)


def _whole(
    documents: Sequence[Document],
    tokenizer: Any,
    sequences: int,
    length: int,
    generator: torch.Generator,
    separator: str,
    name: str,
    progress: tqdm[Any],
) -> Crops:
    # of documents that are too short only the length is kept: most of C4 is drawn for a few that are long enough
    cache: dict[int, Tensor] = {}
    lengths: dict[int, int] = {}
    crops: list[Tensor] = []
    chosen: list[list[str]] = []
    while len(crops) < sequences:
        for _ in range(TRIES):
            index = int(torch.randint(len(documents), (), generator=generator))
            if index not in lengths:
                tokens = _encode(tokenizer, documents[index].text, special=True)
                lengths[index] = len(tokens)
                if len(tokens) > length:
                    cache[index] = torch.tensor(tokens, dtype=torch.int32)
            if index in cache:
                break
        else:
            tried = "no document" if len(lengths) == len(documents) else f"none of {len(lengths)} documents drawn"
            raise FreelunchError(
                f"{tried} of {name} has more than {length} tokens (the longest has {max(lengths.values())}); "
                "use `sampling: packed` or a shorter `length`"
            )
        start = int(torch.randint(lengths[index] - length + 1, (), generator=generator))
        crops.append(cache[index][start : start + length])
        chosen.append([documents[index].id])
        progress.update()
    return Crops(torch.stack(crops), chosen)


def _packed(
    documents: Sequence[Document],
    tokenizer: Any,
    sequences: int,
    length: int,
    generator: torch.Generator,
    separator: str,
    name: str,
    progress: tqdm[Any],
) -> Crops:
    stream: list[int] = []
    chosen: list[list[str]] = [[] for _ in range(sequences)]
    needed = sequences * length
    for index in torch.randperm(len(documents), generator=generator).tolist():
        # one document at a time rather than the joined text: no more is tokenised than is used
        start = len(stream)
        stream += _encode(tokenizer, documents[index].text + separator, special=False)
        for crop in range(start // length, min(-(-len(stream) // length), sequences)):
            chosen[crop].append(documents[index].id)
        progress.update(min(len(stream) // length, sequences) - progress.n)
        if len(stream) >= needed:
            return Crops(torch.tensor(stream[:needed], dtype=torch.int32).view(sequences, length), chosen)
    raise FreelunchError(
        f"{name} has {len(stream)} tokens, {sequences} sequences of {length} need {needed}; "
        "use fewer or shorter sequences, or more documents"
    )


def _encode(tokenizer: Any, text: str, special: bool) -> list[int]:
    # crops are cut below the model's limit anyway, so its warning about long texts would be noise
    ids: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return ids
