"""Disk and operations of recoveries that train, and of models trained from random weights."""

from __future__ import annotations

from ..plan.config import Config, Train
from ..plan.specs import CalibrationSpec, ModelSpec, ReconstructedSpec, RetrainedSpec, ShardSpec, Training
from ..recovery.rates import trial_steps
from ..windows import MATRICES, parse_window
from .basis import Cost, block_weights, forward_operations, shape
from .pruning import prune


def shard(config: Config, spec: ShardSpec) -> Cost:
    whole = reconstruct(config, spec.reconstructed)
    return Cost(disk=whole.disk / spec.shards, operations=whole.operations / spec.shards)


def reconstruct(config: Config, spec: ReconstructedSpec) -> Cost:
    """A reconstruction, and the pruning that is done in it."""
    cost = _windows(config, spec)
    if not spec.interleaved:
        return cost
    pruning = prune(config, spec.pruned)
    return Cost(disk=cost.disk + pruning.disk, operations=cost.operations + pruning.operations)


def _windows(config: Config, spec: ReconstructedSpec) -> Cost:
    calibration = spec.dense.calibration
    facts, width = shape(config, calibration.model)
    per_pass = facts.num_hidden_layers * forward_operations(
        facts, calibration.sequences * calibration.length, calibration.length
    )
    disk = block_weights(facts) * width
    # passes for what is not in the dense cache: one for every matrix, which ends there; one to the middle of a block
    targets = 3.0 if spec.window in MATRICES else 1.0 if parse_window(spec.window) == 1 else 0.0
    if spec.closed_form:
        kept = 1 - spec.pruned.method.pattern.sparsity
        exact = sum(rows * (kept * columns) ** 3 / 3 for rows, columns in facts.matrices.values())
        return Cost(disk=disk, operations=targets * per_pass + facts.num_hidden_layers * exact)
    targets += 2.0 * (spec.flow != "dense")  # the student goes through every window too
    return Cost(disk=disk, operations=per_pass * (_passes(spec.training, calibration) + targets))


def retrain(config: Config, spec: RetrainedSpec) -> Cost:
    """Passes through all blocks and the head."""
    calibration = spec.calibration
    facts, width = shape(config, calibration.model)
    tokens = calibration.sequences * calibration.length
    head = 2 * tokens * facts.vocab_size * facts.hidden_size
    per_pass = facts.num_hidden_layers * forward_operations(facts, tokens, calibration.length) + head
    recomputed = spec.training.epochs if config.execution.checkpointing else 0
    operations = per_pass * (_passes(spec.training, calibration) + recomputed)
    return Cost(disk=block_weights(facts) * width, operations=operations)


def pretrain(config: Config, spec: ModelSpec, train: Train) -> Cost:
    """A model trained from random weights: passes through all of it."""
    facts, width = shape(config, spec)
    head = facts.vocab_size * facts.hidden_size
    per_token = facts.num_hidden_layers * forward_operations(facts, 1, train.length) + 2 * head
    validations = (max(train.epochs, 3) + 1) * train.validation_sequences
    # at the end the first windows of both splits are measured
    passes = 3 * train.epochs * train.sequences + validations + 2 * train.validation_sequences
    return Cost(disk=facts.parameters * width, operations=per_token * passes * train.length)


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
