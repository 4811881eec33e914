"""What a stage will need: disk, memory and operations, from its spec and the model's shape, before anything runs.

Operations count a multiply-add as two. A forward pass over ``T`` tokens through ``P`` weights is ``2 P T``, a backward
pass twice that; attention adds ``4 T L d`` per block for sequences of ``L`` tokens and ``d`` query channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from .config import Config
from .facts import DTYPE_BYTES, Facts, facts_of
from .specs import (
    CalibrationSpec,
    DenseSpec,
    EvaluationSpec,
    ExportSpec,
    GramsSpec,
    ModelSpec,
    PrunedSpec,
    ReconstructedSpec,
    Spec,
)
from .windows import parse_window

# what a Python process with torch and transformers takes before it holds a single weight (Linux, CPU build)
PROCESS_BYTES = 700 * 2**20


_INPUTS = ("q", "o", "up", "down")
"""Matrices that between them read all inputs of a block: k and v read what q reads, gate what up does."""


@dataclass(frozen=True)
class Cost:
    """Bytes that stay on disk, bytes of memory at the peak, and arithmetic operations."""

    disk: float = 0.0
    memory: float = PROCESS_BYTES
    operations: float = 0.0


def cost(config: Config, spec: Spec) -> Cost:
    """Needs of one stage run."""
    if isinstance(spec, ModelSpec):
        facts, width = facts_of(config, spec.model), DTYPE_BYTES[spec.source.dtype]
        # a converted model is held once as read and once as written; linked ones cost neither disk nor memory
        converted = spec.source.wheel is not None or spec.source.random is not None
        size = facts.parameters * width
        return Cost(disk=size if converted else 0, memory=PROCESS_BYTES + (6 * facts.parameters if converted else 0))
    if isinstance(spec, DenseSpec):
        return _dense(config, spec)
    if isinstance(spec, GramsSpec):
        return _grams(config, spec)
    if isinstance(spec, PrunedSpec):
        return _prune(config, spec)
    if isinstance(spec, ReconstructedSpec):
        return _recover(config, spec)
    if isinstance(spec, EvaluationSpec):
        return _evaluate(config, spec)
    if isinstance(spec, ExportSpec):
        return _export(config, spec)
    return Cost(disk=_tokens(spec) * 4 if isinstance(spec, CalibrationSpec) else 0)


def _tokens(calibration: CalibrationSpec) -> int:
    return (calibration.sequences + calibration.validation_sequences) * calibration.length


def forward_operations(facts: Facts, tokens: int, length: int) -> float:
    """Operations of one block's forward pass."""
    return 2 * facts.block_parameters * tokens + 4 * tokens * length * facts.num_attention_heads * facts.head_dim


def _dense(config: Config, spec: DenseSpec) -> Cost:
    calibration = spec.calibration
    facts, width = _shape(config, calibration.model)
    tokens = _tokens(calibration)
    each = tokens * facts.hidden_size * width
    kept = min(facts.num_hidden_layers + 1, max(2, int(config.dense.max_gib * 2**30 // each)))
    live = facts.vocab_size * facts.hidden_size * width + _batch(config, facts, calibration.length, width)
    return Cost(
        disk=kept * each,
        memory=PROCESS_BYTES + live + 2 * each,
        operations=facts.num_hidden_layers * forward_operations(facts, tokens, calibration.length),
    )


def _grams(config: Config, spec: GramsSpec) -> Cost:
    calibration = spec.dense.calibration
    facts, width = _shape(config, calibration.model)
    tokens = calibration.sequences * calibration.length
    entries = _gram_entries(facts)
    operations = forward_operations(facts, tokens, calibration.length) + 2 * tokens * entries
    states = 2 * tokens * facts.hidden_size * width  # in memory maps, where the dense cache did not keep them
    return Cost(
        disk=facts.num_hidden_layers * entries * 4,
        memory=PROCESS_BYTES + entries * 4 + states + _batch(config, facts, calibration.length, width),
        operations=facts.num_hidden_layers * operations,
    )


def _gram_entries(facts: Facts) -> int:
    """Entries of the Gram matrices of one block."""
    return sum(facts.matrices[role][1] ** 2 for role in _INPUTS)


def _prune(config: Config, spec: PrunedSpec) -> Cost:
    """Masks of the whole model, and its weights where the method changes them; one matrix in memory."""
    calibration, method = spec.dense.calibration, spec.method
    facts, width = _shape(config, calibration.model)
    weights = facts.num_hidden_layers * facts.block_parameters
    shapes, kept = facts.matrices.values(), 1 - method.pattern.sparsity
    # float32 weights, scores, and what is made of them on the way
    memory = 32.0 * max(rows * columns for rows, columns in shapes)
    operations = 0.0
    if method.needs_gram:
        # the Gram matrix, its damped copy, its factor and what is left of that; products with the weights
        memory += 18 * max(columns**2 for _, columns in shapes)
        per_block = sum(3 * rows * columns**2 for rows, columns in shapes)
        per_block += sum(facts.matrices[role][1] ** 3 for role in _INPUTS)
        operations = facts.num_hidden_layers * per_block
    for refinement in method.refinements:
        operations += facts.num_hidden_layers * sum(refinement.operations(r, c, kept) for r, c in shapes)
        memory = max(memory, 16 * max(c**2 for _, c in shapes) + max(refinement.memory(r, c, kept) for r, c in shapes))
    if spec.prune_inputs != "dense":
        tokens = calibration.sequences * calibration.length
        operations += 2 * facts.num_hidden_layers * forward_operations(facts, tokens, calibration.length)
        memory += 2 * tokens * facts.hidden_size * width + _batch(config, facts, calibration.length, width)
        memory += 4 * _gram_entries(facts) if method.needs_gram else 0
    changed = weights * width if method.changes_weights else 0
    return Cost(disk=weights / 8 + changed, memory=PROCESS_BYTES + memory, operations=operations)


def _recover(config: Config, spec: ReconstructedSpec) -> Cost:
    """A reconstruction, and the pruning that is done in it."""
    cost = _reconstruct(config, spec)
    if not spec.interleaved:
        return cost
    pruning = _prune(config, spec.pruned)
    return Cost(cost.disk + pruning.disk, max(cost.memory, pruning.memory), cost.operations + pruning.operations)


def _reconstruct(config: Config, spec: ReconstructedSpec) -> Cost:
    calibration = spec.pruned.dense.calibration
    facts, width = _shape(config, calibration.model)
    halves = parse_window(spec.window)
    largest = (
        max(facts.block_parameters - _mlp(facts), _mlp(facts)) if halves == 1 else halves / 2 * facts.block_parameters
    )
    trained = calibration.sequences * calibration.length
    # forward and backward over the training crops, and the passes over the validation crops
    passes = 3 * spec.epochs + (max(spec.epochs, 3) + 1) * calibration.validation_sequences / calibration.sequences
    per_pass = facts.num_hidden_layers * forward_operations(facts, trained, calibration.length)
    step = spec.batch_size * calibration.length
    activations = 14 * step * (facts.hidden_size + facts.intermediate_size) * 4 * max(1, halves / 2)
    return Cost(
        disk=facts.num_hidden_layers * facts.block_parameters * width,
        # float32 weights, gradients and two moments, the rounded copy, the mask
        memory=PROCESS_BYTES + largest * (16 + 2 * width + 1) + activations,
        operations=per_pass * (passes + (1 if halves == 1 else 0)),
    )


def _evaluate(config: Config, spec: EvaluationSpec) -> Cost:
    facts, width = _shape(config, spec.base)
    operations = memory = 0.0
    for task in spec.tasks:
        tokens = (task.sequences or 1000) * task.length * len(task.splits)
        operations += facts.num_hidden_layers * forward_operations(facts, tokens, task.length)
        operations += 2 * tokens * facts.vocab_size * facts.hidden_size
        memory = max(memory, tokens * facts.hidden_size * width + 3 * task.length * facts.vocab_size * 4)
    live = facts.vocab_size * facts.hidden_size * width + _batch(config, facts, 1, width)
    return Cost(memory=PROCESS_BYTES + memory + live, operations=operations)


def _export(config: Config, spec: ExportSpec) -> Cost:
    """The whole model on disk; one tensor in memory as read and as written, and an embedding and blocks to compare."""
    facts, width = _shape(config, spec.subject.base)
    embedding = facts.vocab_size * facts.hidden_size
    tensor = max(embedding, *(rows * columns for rows, columns in facts.matrices.values()))
    compared = embedding + 2 * facts.block_parameters
    return Cost(disk=facts.parameters * width, memory=PROCESS_BYTES + 8 * tensor + 4 * compared)


def _shape(config: Config, model: ModelSpec) -> tuple[Facts, int]:
    return facts_of(config, model.model), DTYPE_BYTES[model.source.dtype]


def _mlp(facts: Facts) -> int:
    return facts.mlp_matrices * facts.hidden_size * facts.intermediate_size


def _batch(config: Config, facts: Facts, length: int, width: int) -> float:
    """One block's weights and the activations of one streamed batch."""
    tokens = max(config.execution.stream_tokens, length)
    return facts.block_parameters * width + 4 * tokens * (facts.hidden_size + facts.intermediate_size) * width
