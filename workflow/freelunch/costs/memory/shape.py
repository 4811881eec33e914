"""The parts of a model in bytes, as they lie in memory while its blocks are streamed."""

from __future__ import annotations

from dataclasses import dataclass

from ...plan.config import Config
from ...plan.facts import DTYPE_BYTES, Facts
from ...plan.specs import ModelSpec
from ..basis import gram_entries, shape
from .machine import Machine, machine_of
from .peak import Phase


@dataclass(frozen=True)
class Shape:
    """A model on a machine.

    Attributes:
        saved: bytes of a number in files, and of kept hidden states.
        computed: bytes of a number that products are computed of.
    """

    facts: Facts
    machine: Machine
    saved: int
    computed: int

    @property
    def embedding(self) -> int:
        """Weights of the embedding; of the head as many."""
        return self.facts.vocab_size * self.facts.hidden_size

    @property
    def largest(self) -> int:
        """Weights of the largest matrix of a block."""
        return max(rows * columns for rows, columns in self.facts.matrices.values())

    @property
    def columns(self) -> int:
        """Of the matrix with most of them."""
        return max(columns for _, columns in self.facts.matrices.values())

    @property
    def block(self) -> float:
        """Bytes of a block's weights."""
        return self.facts.block_parameters * self.computed

    @property
    def grams(self) -> float:
        """Bytes of a block's Gram matrices."""
        return 4.0 * gram_entries(self.facts)

    def reading(self, weights: float, held: float = 0.0, overlaid: bool = False) -> Phase:
        """A tensor is read while others are ``held``: once as it lies in its file and once as it is computed with.

        Where an accelerator does the latter, the page cache's copy is there besides; so are a mask and what it makes of
        a tensor of an overlaid model.
        """
        copies = self.saved * (2 if self.machine.accelerator else 1)
        masked = weights * (2 * self.saved + 2) if overlaid else 0.0
        return Phase(held + weights * self.computed, weights * copies + masked)

    def reading_block(self, held: float = 0.0, overlaid: bool = False) -> Phase:
        """The last matrix of a block is read, and the others are there."""
        return self.reading(self.largest, held + self.block - self.largest * self.computed, overlaid)

    def batch(self, tokens: int) -> float:
        """Bytes of a batch that goes through a block: what the MLP makes of it at once, and states of its width."""
        return tokens * self.computed * (3 * self.facts.intermediate_size + 6 * self.facts.hidden_size)

    def collected(self, tokens: int) -> float:
        """The same where statistics are collected, whose sums are made of float64: the widest inputs and their squares,
        and, where products are of 16 bits, the inputs in float32."""
        widest = self.computed + 16 + (4 if self.computed < 4 else 0)
        inputs = tokens * (widest * self.columns + 6 * self.facts.hidden_size * self.computed)
        return max(self.batch(tokens), inputs)

    def states(self, tokens: int) -> float:
        """Bytes of hidden states in memory."""
        return tokens * self.facts.hidden_size * self.computed

    def kept(self, tokens: int) -> float:
        """Bytes of hidden states in files."""
        return tokens * self.facts.hidden_size * self.saved


def shape_of(config: Config, model: ModelSpec) -> Shape:
    """A model of the config, on the machine that its jobs run on."""
    machine = machine_of(config.execution)
    dtype = model.source.dtype
    return Shape(shape(config, model)[0], machine, DTYPE_BYTES[dtype], machine.products[dtype])


def streamed(config: Config, length: int, sequences: int) -> int:
    """Tokens of one batch when that many sequences are streamed."""
    return min(max(1, config.execution.stream_tokens // length), sequences) * length
