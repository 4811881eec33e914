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
    # a converted model is held once as read and once as written; linked ones cost neither disk nor memory
    converted = spec.source.wheel is not None or spec.source.random is not None
    size = facts.parameters * width
    return Cost(disk=size if converted else 0, memory=PROCESS_BYTES + (6 * facts.parameters if converted else 0))


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


def evaluate(config: Config, spec: EvaluationSpec) -> Cost:
    facts, width = shape(config, spec.base)
    operations = memory = 0.0
    compared = 0.0  # states of all drift tasks, which go through the blocks together
    for task in spec.tasks:
        if isinstance(task, ZeroShotTask):
            operations += zero_shot.operations(config, facts, task)
            memory = max(memory, zero_shot.memory(config, facts, width, task))
            continue
        tokens = (task.sequences or 1000) * task.length * len(task.splits)
        once = facts.num_hidden_layers * forward_operations(facts, tokens, task.length)
        if task.metric == "perplexity":
            operations += once + 2 * tokens * facts.vocab_size * facts.hidden_size
            memory = max(memory, tokens * facts.hidden_size * width + 3 * task.length * facts.vocab_size * 4)
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
