"""Disk and operations of pruning, and of the repair that needs no more than it."""

from __future__ import annotations

from ..plan.config import Config
from ..plan.specs import PrunedSpec, RepairedSpec
from .basis import INPUTS, Cost, forward_operations, shape


def prune(config: Config, spec: PrunedSpec) -> Cost:
    """Masks of the whole model, and its weights where the method changes them."""
    calibration, method = spec.dense.calibration, spec.method
    facts, width = shape(config, calibration.model)
    weights = facts.num_hidden_layers * facts.block_parameters
    shapes, kept = facts.matrices.values(), 1 - method.pattern.sparsity
    operations = 0.0
    if method.needs_gram:
        per_block = sum(3 * rows * columns**2 for rows, columns in shapes)
        per_block += sum(facts.matrices[role][1] ** 3 for role in INPUTS)
        operations = facts.num_hidden_layers * per_block
    for refinement in method.refinements:
        operations += facts.num_hidden_layers * sum(refinement.operations(r, c, kept) for r, c in shapes)
    if spec.prune_inputs != "dense":
        tokens = calibration.sequences * calibration.length
        operations += 2 * facts.num_hidden_layers * forward_operations(facts, tokens, calibration.length)
    changed = weights * width if method.changes_weights else 0
    return Cost(disk=weights / 8 + changed, operations=operations)


def repair(config: Config, spec: RepairedSpec) -> Cost:
    """The weights on disk."""
    facts, width = shape(config, spec.base)
    return Cost(
        disk=facts.num_hidden_layers * facts.block_parameters * width,
        # products of the dense and of the pruned weights with the covariance
        operations=facts.num_hidden_layers * sum(2 * 2 * r * c**2 for r, c in facts.matrices.values()),
    )
