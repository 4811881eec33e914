"""Recoveries that train."""

from __future__ import annotations

from freelunch.parametrizations import parse_parametrization

from ..config import Config, Train
from ..facts import Facts
from ..recovery.rates import trial_steps
from ..specs import CalibrationSpec, ModelSpec, ReconstructedSpec, RetrainedSpec, ShardSpec, Training
from ..windows import MATRICES, parse_window
from .basis import PROCESS_BYTES, Cost, block_weights, forward_operations, mlp_weights, shape
from .pruning import prune


def shard(config: Config, spec: ShardSpec) -> Cost:
    whole = reconstruct(config, spec.reconstructed)
    return Cost(whole.disk / spec.shards, whole.memory, whole.operations / spec.shards)


def reconstruct(config: Config, spec: ReconstructedSpec) -> Cost:
    """A reconstruction, and the pruning that is done in it."""
    cost = _windows(config, spec)
    if not spec.interleaved:
        return cost
    pruning = prune(config, spec.pruned)
    return Cost(cost.disk + pruning.disk, max(cost.memory, pruning.memory), cost.operations + pruning.operations)


def _windows(config: Config, spec: ReconstructedSpec) -> Cost:
    calibration = spec.dense.calibration
    facts, width = shape(config, calibration.model)
    per_pass = facts.num_hidden_layers * forward_operations(
        facts, calibration.sequences * calibration.length, calibration.length
    )
    halves = parse_window(spec.window)
    if spec.window in MATRICES:
        largest = max(rows * columns for rows, columns in facts.matrices.values())
        blocks, targets = 1.0, 3.0  # a pass for every matrix, which ends there
    elif halves == 1:
        largest = max(facts.block_parameters - mlp_weights(facts), mlp_weights(facts))
        blocks, targets = 1.0, 1.0
    else:
        blocks, targets = (halves / 2 if halves else facts.num_hidden_layers), 0.0
        largest = int(blocks * facts.block_parameters)
    if spec.closed_form:
        kept = 1 - spec.pruned.method.pattern.sparsity
        exact = sum(rows * (kept * columns) ** 3 / 3 for rows, columns in facts.matrices.values())
        columns = max(columns for _, columns in facts.matrices.values())
        memory = PROCESS_BYTES + 12 * largest + 16 * columns**2 + 2**28
        return Cost(block_weights(facts) * width, memory, targets * per_pass + facts.num_hidden_layers * exact)
    targets += 2.0 * (spec.flow != "dense")  # the student goes through every window too
    return Cost(
        disk=block_weights(facts) * width,
        memory=PROCESS_BYTES + largest * _trained_bytes(spec.training, width) + _activations(spec, facts, blocks),
        operations=per_pass * (_passes(spec.training, calibration) + targets),
    )


def retrain(config: Config, spec: RetrainedSpec) -> Cost:
    """All blocks in memory, and the logits of a step."""
    calibration = spec.calibration
    facts, width = shape(config, calibration.model)
    tokens = calibration.sequences * calibration.length
    head = 2 * tokens * facts.vocab_size * facts.hidden_size
    per_pass = facts.num_hidden_layers * forward_operations(facts, tokens, calibration.length) + head
    recomputed = spec.training.epochs if config.execution.checkpointing else 0
    logits = 3 * 4 * _step(spec.training, calibration) * facts.vocab_size * (2 if spec.dense else 1)
    kept = 1 if config.execution.checkpointing else facts.num_hidden_layers
    states = facts.num_hidden_layers * 4 * _step(spec.training, calibration) * facts.hidden_size
    embedding = (1 if facts.tie_word_embeddings else 2) * facts.vocab_size * facts.hidden_size * width
    return Cost(
        disk=block_weights(facts) * width,
        memory=PROCESS_BYTES + block_weights(facts) * _trained_bytes(spec.training, width) + embedding + logits + states
        + _activations(spec, facts, kept),
        operations=per_pass * (_passes(spec.training, calibration) + recomputed),
    )  # fmt: skip


def pretrain(config: Config, spec: ModelSpec, train: Train) -> Cost:
    """A model trained from random weights: all of it in memory, with all activations and the logits of a step."""
    facts, width = shape(config, spec)
    step, head = train.batch_size * train.length, facts.vocab_size * facts.hidden_size
    per_token = facts.num_hidden_layers * forward_operations(facts, 1, train.length) + 2 * head
    validations = (max(train.epochs, 3) + 1) * train.validation_sequences
    # at the end the first windows of both splits are measured
    passes = 3 * train.epochs * train.sequences + validations + 2 * train.validation_sequences
    # float32 weights, gradients, two moments, and the rounded ones that are validated; copies of the best state
    weights = facts.parameters * (4 + 4 + 8 + 4 + 2 * width)
    activations = 14 * step * (facts.hidden_size + facts.intermediate_size) * 4 * facts.num_hidden_layers
    return Cost(
        disk=facts.parameters * width,
        memory=PROCESS_BYTES + weights + activations + 3 * 4 * step * facts.vocab_size,
        operations=per_token * passes * train.length,
    )


def _step(training: Training, calibration: CalibrationSpec) -> int:
    """Tokens that go forward and backward at a time."""
    return -(-training.batch_size // training.accumulation) * calibration.length


def _passes(training: Training, calibration: CalibrationSpec) -> float:
    """Forward passes over the sequences that training comes to; a backward pass counts two."""
    validations = (max(training.epochs, 3) + 1) * calibration.validation_sequences / calibration.sequences
    trials = 0.0
    if training.learning_rate == "auto":
        # about five rates are tried, each judged by one pass over the validation crops
        steps = training.epochs * -(-calibration.sequences // training.batch_size)
        share = trial_steps(steps) / steps
        trials = 5 * (3 * training.epochs * share + calibration.validation_sequences / calibration.sequences)
    return 3 * training.epochs + validations + trials


def _trained_bytes(training: Training, width: int) -> float:
    """Bytes per weight of what is trained: with ``full`` float32 weights, gradients and two moments."""
    parts = parse_parametrization(training.parametrization)
    if any(part.whole for part in parts):
        moments = 8 if training.optimizer == "adamw" else 4
        # the rounded copy of the best state and of the one at hand, the mask
        return 8 + moments + 2 * width + 1 + (4 if training.learning_rate == "auto" else 0)
    # frozen weights, the mask, the weight that training computes with, its gradient
    return width + 1 + (10 if any(part.matrices for part in parts) else 0) + 2 * width


def _activations(spec: ReconstructedSpec | RetrainedSpec, facts: Facts, blocks: float) -> float:
    calibration = spec.calibration if isinstance(spec, RetrainedSpec) else spec.dense.calibration
    step = _step(spec.training, calibration)
    return 14 * step * (facts.hidden_size + facts.intermediate_size) * 4 * max(1, blocks)
