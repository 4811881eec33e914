"""Stages that make a model, or stream it once."""

from __future__ import annotations

from ..config import Config, ZeroShotTask
from ..facts import DTYPE_BYTES, facts_of
from ..specs import CalibrationSpec, DenseSpec, EvaluationSpec, ExportSpec, GramsSpec, ModelSpec
from . import zero_shot
from .basis import PROCESS_BYTES, Cost, batch_bytes, forward_operations, gram_entries, shape, tokens_of
from .training import pretrain


def model(config: Config, spec: ModelSpec) -> Cost:
    if spec.source.train is not None:
        return pretrain(config, spec, spec.source.train)
    facts, width = facts_of(config, spec.model), DTYPE_BYTES[spec.source.dtype]
    size = facts.parameters * width
    if spec.source.hub is not None and spec.source.hub.pickled:
        return Cost(disk=size, memory=PROCESS_BYTES + 2 * size)  # as read and as written
    if spec.source.wheel is not None or spec.source.random is not None:
        return Cost(disk=size, memory=PROCESS_BYTES + 6 * facts.parameters)  # float32 as well
    return Cost()  # linked


def calibration(config: Config, spec: CalibrationSpec) -> Cost:
    return Cost(disk=tokens_of(spec) * 4)


def dense(config: Config, spec: DenseSpec) -> Cost:
    calibration = spec.calibration
    facts, width = shape(config, calibration.model)
    tokens = tokens_of(calibration)
    each = tokens * facts.hidden_size * width
    kept = min(facts.num_hidden_layers + 1, max(2, int(config.dense.max_gib * 2**30 // each)))
    live = facts.vocab_size * facts.hidden_size * width + batch_bytes(config, facts, calibration.length, width)
    return Cost(
        disk=kept * each,
        memory=PROCESS_BYTES + live + 2 * each,
        operations=facts.num_hidden_layers * forward_operations(facts, tokens, calibration.length),
    )


def grams(config: Config, spec: GramsSpec) -> Cost:
    calibration = spec.dense.calibration
    facts, width = shape(config, calibration.model)
    tokens = calibration.sequences * calibration.length
    entries = gram_entries(facts)
    operations = forward_operations(facts, tokens, calibration.length) + 2 * tokens * entries
    states = 2 * tokens * facts.hidden_size * width  # in memory maps, where the dense cache did not keep them
    return Cost(
        disk=facts.num_hidden_layers * entries * 4,
        memory=PROCESS_BYTES + entries * 4 + states + batch_bytes(config, facts, calibration.length, width),
        operations=facts.num_hidden_layers * operations,
    )


WHOLE_SPLIT = 350_000
"""Tokens that a split is taken to have where a task reads all of it: as many as WikiText-2's test split, about."""


def evaluate(config: Config, spec: EvaluationSpec) -> Cost:
    facts, width = shape(config, spec.base)
    operations = memory = 0.0
    read = compared = 0.0  # states of all perplexities, and of all drifts: each kind goes through the blocks together
    for task in spec.tasks:
        if isinstance(task, ZeroShotTask):
            operations += zero_shot.operations(config, facts, task)
            memory = max(memory, zero_shot.memory(config, facts, width, task))
            continue
        tokens = (task.sequences * task.length if task.sequences else WHOLE_SPLIT) * len(task.splits)
        once = facts.num_hidden_layers * forward_operations(facts, tokens, task.length)
        if task.metric == "perplexity":
            operations += once + 2 * tokens * facts.vocab_size * facts.hidden_size
            read += tokens * facts.hidden_size * width
            memory = max(memory, read + 3 * task.length * facts.vocab_size * 4)
        elif spec.overlays:
            operations += 3 * once  # the dense block, and the other one on its own states and on dense ones
            compared += 2 * tokens * facts.hidden_size * width
            # the dense block besides the other one; float64 states of a sequence
            memory = max(memory, compared + facts.block_parameters * width + 32 * task.length * facts.hidden_size)
    live = facts.vocab_size * facts.hidden_size * width + batch_bytes(config, facts, 1, width)
    return Cost(memory=PROCESS_BYTES + memory + live, operations=operations)


def export(config: Config, spec: ExportSpec) -> Cost:
    """The whole model on disk; one tensor in memory as read and as written, and an embedding and blocks to compare."""
    facts, width = shape(config, spec.subject.base)
    embedding = facts.vocab_size * facts.hidden_size
    tensor = max(embedding, *(rows * columns for rows, columns in facts.matrices.values()))
    compared = embedding + 2 * facts.block_parameters
    return Cost(disk=facts.parameters * width, memory=PROCESS_BYTES + 8 * tensor + 4 * compared)
