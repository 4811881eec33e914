"""Pruning, and the repair that needs no more than it."""

from __future__ import annotations

from ...plan.config import Config
from ...plan.specs import PrunedSpec, RepairedSpec
from .peak import NETWORK, PLAIN, Peak, Phase, peak
from .shape import Shape, shape_of, streamed


def prune(config: Config, spec: PrunedSpec) -> Peak:
    """One matrix and its Gram matrix; what a block's files will hold; with pruned inputs a block besides, streamed."""
    calibration, method = spec.dense.calibration, spec.method
    shape = shape_of(config, calibration.model)
    changed = shape.facts.block_parameters * shape.saved if method.changes_weights else 0.0
    written = shape.facts.block_parameters / 8 + changed
    sparse = spec.prune_inputs != "dense"
    # statistics of a block that is not dense are there for all of its matrices, with what was factorised of them
    held = (shape.grams if sparse else 0.0) * (2 if method.needs_gram else 0)
    phases = [Phase(held + device, written) for device in _matrix(spec, shape)]
    if not sparse:
        return peak(shape.machine, PLAIN, phases)
    batch = streamed(config, calibration.length, calibration.sequences)
    reading = shape.reading_block(held, overlaid=True)
    phases += [reading, Phase(held / 2 + shape.block + shape.collected(batch))]
    return peak(shape.machine, NETWORK, phases, 2 * shape.kept(calibration.sequences * calibration.length))


def _matrix(spec: PrunedSpec, shape: Shape) -> list[float]:
    """Bytes that it takes to prune the largest matrix, one step after the other."""
    method, kept = spec.method, 1 - spec.method.pattern.sparsity
    shapes = shape.facts.matrices.values()
    # float32 weights, scores, and what is made of them on the way
    scored = 30.0 * shape.largest
    if not method.needs_gram:
        return [scored]
    square = shape.columns**2
    # the Gram matrix, its damped copy, and three factors on the way to that of the inverse; then two of them
    refined = [max(each.memory(rows, columns, kept) for rows, columns in shapes) for each in method.refinements]
    return [22.0 * square + 8 * shape.largest, 8.0 * square + scored, *(16.0 * square + most for most in refined)]


def repair(config: Config, spec: RepairedSpec) -> Peak:
    """A block's weights as they are written; a matrix and the Gram matrix of its inputs."""
    shape = shape_of(config, spec.base)
    # float32: dense, pruned and scaled weights, and what is made of them on the way; besides, as read and as written
    matrix = 16.0 * shape.largest
    # the Gram matrix as read and as kept, and the covariance in float64
    gram = 16.0 * shape.columns**2
    written = shape.facts.block_parameters * shape.saved + 2 * shape.saved * shape.largest
    return peak(shape.machine, NETWORK, [Phase(matrix + gram, written)])
