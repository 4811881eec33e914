"""Disk and operations of stages that make a model, or stream it once."""

from __future__ import annotations

from ..plan.config import Config, ZeroShotTask
from ..plan.facts import DTYPE_BYTES, facts_of
from ..plan.specs import CalibrationSpec, DenseSpec, EvaluationSpec, ExportSpec, GramsSpec, ModelSpec
from . import zero_shot
from .basis import Cost, forward_operations, gram_entries, shape, tokens_of
from .memory.streaming import text_tokens
from .training import pretrain


def model(config: Config, spec: ModelSpec) -> Cost:
    if spec.source.train is not None:
        return pretrain(config, spec, spec.source.train)
    linked = spec.source.path is not None or (spec.source.hub is not None and not spec.source.hub.pickled)
    return Cost() if linked else Cost(disk=facts_of(config, spec.model).parameters * DTYPE_BYTES[spec.source.dtype])


def calibration(config: Config, spec: CalibrationSpec) -> Cost:
    return Cost(disk=tokens_of(spec) * 4)


def dense(config: Config, spec: DenseSpec) -> Cost:
    calibration = spec.calibration
    facts, width = shape(config, calibration.model)
    tokens = tokens_of(calibration)
    each = tokens * facts.hidden_size * width
    kept = min(facts.num_hidden_layers + 1, max(2, int(config.dense.max_gib * 2**30 // each)))
    operations = facts.num_hidden_layers * forward_operations(facts, tokens, calibration.length)
    return Cost(disk=kept * each, operations=operations)


def grams(config: Config, spec: GramsSpec) -> Cost:
    calibration = spec.dense.calibration
    facts, _ = shape(config, calibration.model)
    tokens = calibration.sequences * calibration.length
    entries = gram_entries(facts)
    operations = forward_operations(facts, tokens, calibration.length) + 2 * tokens * entries
    return Cost(disk=facts.num_hidden_layers * entries * 4, operations=facts.num_hidden_layers * operations)


def evaluate(config: Config, spec: EvaluationSpec) -> Cost:
    facts, _ = shape(config, spec.base)
    operations = 0.0
    for task in spec.tasks:
        if isinstance(task, ZeroShotTask):
            operations += zero_shot.operations(config, facts, task)
            continue
        tokens = text_tokens(task)
        once = facts.num_hidden_layers * forward_operations(facts, tokens, task.length)
        if task.metric == "perplexity":
            operations += once + 2 * tokens * facts.vocab_size * facts.hidden_size
        elif spec.overlays:
            operations += 3 * once  # the dense block, and the other one on its own states and on dense ones
    return Cost(operations=operations)


def export(config: Config, spec: ExportSpec) -> Cost:
    """The whole model on disk."""
    facts, width = shape(config, spec.subject.base)
    return Cost(disk=facts.parameters * width)
