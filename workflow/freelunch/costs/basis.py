"""What costs are made of."""

from __future__ import annotations

from dataclasses import dataclass

from ..plan.config import Config
from ..plan.facts import DTYPE_BYTES, Facts, facts_of
from ..plan.specs import CalibrationSpec, ModelSpec

# what a Python process with torch and transformers takes before it holds a single weight (Linux, CPU build)
PROCESS_BYTES = 700 * 2**20


INPUTS = ("q", "o", "up", "down")
"""Matrices that between them read all inputs of a block: k and v read what q reads, gate what up does."""


@dataclass(frozen=True)
class Cost:
    """Bytes that stay on disk, bytes of memory at the peak, and arithmetic operations."""

    disk: float = 0.0
    memory: float = PROCESS_BYTES
    operations: float = 0.0


def tokens_of(calibration: CalibrationSpec) -> int:
    return (calibration.sequences + calibration.validation_sequences) * calibration.length


def forward_operations(facts: Facts, tokens: int, length: int) -> float:
    """Operations of one block's forward pass."""
    return 2 * facts.block_parameters * tokens + 4 * tokens * length * facts.num_attention_heads * facts.head_dim


def gram_entries(facts: Facts) -> int:
    """Entries of the Gram matrices of one block."""
    return sum(facts.matrices[role][1] ** 2 for role in INPUTS)


def shape(config: Config, model: ModelSpec) -> tuple[Facts, int]:
    return facts_of(config, model.model), DTYPE_BYTES[model.source.dtype]


def mlp_weights(facts: Facts) -> int:
    return facts.mlp_matrices * facts.hidden_size * facts.intermediate_size


def block_weights(facts: Facts) -> int:
    return facts.num_hidden_layers * facts.block_parameters


def batch_bytes(config: Config, facts: Facts, length: int, width: int) -> float:
    """One block's weights and the activations of one streamed batch."""
    tokens = max(config.execution.stream_tokens, length)
    return facts.block_parameters * width + 4 * tokens * (facts.hidden_size + facts.intermediate_size) * width
