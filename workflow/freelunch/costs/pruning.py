"""Pruning, and the repair that needs no more than it."""

from __future__ import annotations

from ..config import Config
from ..specs import PrunedSpec, RepairedSpec
from .basis import INPUTS, PROCESS_BYTES, Cost, batch_bytes, forward_operations, gram_entries, shape


def prune(config: Config, spec: PrunedSpec) -> Cost:
    """Masks of the whole model, and its weights where the method changes them; one matrix in memory."""
    calibration, method = spec.dense.calibration, spec.method
    facts, width = shape(config, calibration.model)
    weights = facts.num_hidden_layers * facts.block_parameters
    shapes, kept = facts.matrices.values(), 1 - method.pattern.sparsity
    # float32 weights, scores, and what is made of them on the way
    memory = 32.0 * max(rows * columns for rows, columns in shapes)
    operations = 0.0
    if method.needs_gram:
        # the Gram matrix, its damped copy, its factor and what is left of that; products with the weights
        memory += 18 * max(columns**2 for _, columns in shapes)
        per_block = sum(3 * rows * columns**2 for rows, columns in shapes)
        per_block += sum(facts.matrices[role][1] ** 3 for role in INPUTS)
        operations = facts.num_hidden_layers * per_block
    for refinement in method.refinements:
        operations += facts.num_hidden_layers * sum(refinement.operations(r, c, kept) for r, c in shapes)
        memory = max(memory, 16 * max(c**2 for _, c in shapes) + max(refinement.memory(r, c, kept) for r, c in shapes))
    if spec.prune_inputs != "dense":
        tokens = calibration.sequences * calibration.length
        operations += 2 * facts.num_hidden_layers * forward_operations(facts, tokens, calibration.length)
        memory += 2 * tokens * facts.hidden_size * width + batch_bytes(config, facts, calibration.length, width)
        memory += 4 * gram_entries(facts) if method.needs_gram else 0
    changed = weights * width if method.changes_weights else 0
    return Cost(disk=weights / 8 + changed, memory=PROCESS_BYTES + memory, operations=operations)


def repair(config: Config, spec: RepairedSpec) -> Cost:
    """The weights on disk; in memory one block of them, a matrix and the Gram matrix of its inputs."""
    facts, width = shape(config, spec.base)
    shapes = facts.matrices.values()
    # float32: dense, pruned and scaled weights, and what is made of them on the way; besides, as read and as written
    matrix = (16 + 2 * width) * max(rows * columns for rows, columns in shapes)
    # the Gram matrix as read and as kept, and the covariance in float64
    gram = 16 * max(columns**2 for _, columns in shapes)
    return Cost(
        disk=facts.num_hidden_layers * facts.block_parameters * width,
        memory=PROCESS_BYTES + facts.block_parameters * width + matrix + gram,
        # products of the dense and of the pruned weights with the covariance
        operations=facts.num_hidden_layers * sum(2 * 2 * rows * columns**2 for rows, columns in shapes),
    )
