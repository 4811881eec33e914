"""Stages that make a model, or go through it block by block."""

from __future__ import annotations

from collections.abc import Iterator

from ...plan.config import Config, TextTask, ZeroShotTask
from ...plan.specs import CalibrationSpec, DataSpec, DenseSpec, EvaluationSpec, ExportSpec, GramsSpec, ModelSpec
from .. import zero_shot
from ..basis import block_weights, tokens_of
from .peak import HARNESS, HOLES, NETWORK, PLAIN, Peak, Phase, peak
from .shape import Shape, shape_of, streamed
from .training import pretrain

WHOLE_SPLIT = 350_000
"""Tokens that a split is taken to have where a task reads all of it: as many as WikiText-2's test split, about."""
LOGITS = 2**26
"""Logits that a streamed zero-shot task computes at a time."""


def text_tokens(task: TextTask) -> int:
    """Tokens of all splits that a task reads."""
    return (task.sequences * task.length if task.sequences else WHOLE_SPLIT) * len(task.splits)


def model(config: Config, spec: ModelSpec) -> Peak:
    """What is converted is held whole; what is linked is not looked into."""
    if spec.source.train is not None:
        return pretrain(config, spec, spec.source.train)
    shape = shape_of(config, spec)
    size = 0
    if spec.source.hub is not None and spec.source.hub.pickled:
        size = shape.facts.parameters * 2 * shape.saved  # as read and as written
    elif spec.source.wheel is not None:
        size = shape.facts.parameters * (1 + 2 * shape.saved)  # the file, what was read, and what is written
    elif spec.source.random is not None:
        # a head that is the embedding is made before it is tied
        size = (block_weights(shape.facts) + 2 * shape.embedding) * shape.saved
    return Peak(NETWORK + size)


def data(config: Config, spec: DataSpec) -> Peak:
    return Peak(PLAIN)


def calibration(config: Config, spec: CalibrationSpec) -> Peak:
    return Peak(NETWORK - HOLES + 16 * tokens_of(spec))


def dense(config: Config, spec: DenseSpec) -> Peak:
    calibration = spec.calibration
    shape, most = shape_of(config, calibration.model), max(calibration.sequences, calibration.validation_sequences)
    batch = streamed(config, calibration.length, most)
    phases = [
        shape.reading(shape.embedding),
        shape.reading_block(),
        Phase(shape.block + shape.collected(batch)),
    ]
    # the states before a block and behind it
    return peak(shape.machine, NETWORK + HOLES, phases, 2 * shape.kept(tokens_of(calibration)))


def grams(config: Config, spec: GramsSpec) -> Peak:
    calibration = spec.dense.calibration
    shape = shape_of(config, calibration.model)
    batch = streamed(config, calibration.length, calibration.sequences)
    # those of the block before are let go of when a block's are there
    held = min(2, shape.facts.num_hidden_layers) * shape.grams
    written = held if shape.machine.accelerator else 0.0
    phases = [shape.reading_block(held), Phase(shape.block + shape.collected(batch) + held, written)]
    return peak(shape.machine, NETWORK + HOLES, phases, 2 * shape.kept(calibration.sequences * calibration.length))


def evaluate(config: Config, spec: EvaluationSpec) -> Peak:
    shape = shape_of(config, spec.base)
    asked = [_zero_shot(config, shape, task) for task in spec.tasks if isinstance(task, ZeroShotTask)]
    phases = [*_perplexities(config, spec, shape), *_drifts(config, spec, shape), *asked]
    return peak(shape.machine, NETWORK + (HARNESS if asked else 0), phases or [Phase()])


def _perplexities(config: Config, spec: EvaluationSpec, shape: Shape) -> Iterator[Phase]:
    """The embedding, the blocks and the head, one after the other; the states of all texts are in the host's memory."""
    tasks = _texts(spec, "perplexity")
    if not tasks:
        return
    states = sum(shape.states(text_tokens(task)) for task in tasks)
    batch = max(streamed(config, task.length, task.sequences or WHOLE_SPLIT) for task in tasks)
    outside = shape.reading(shape.embedding)
    yield Phase(outside.device, outside.host + states)
    reading = shape.reading_block(overlaid=bool(spec.overlays))
    yield Phase(reading.device, reading.host + states)
    yield Phase(shape.block + shape.batch(batch), 2 * states)  # before the block, and behind it
    # of a sequence: logits as computed, in float32, and those of the one before or what cross entropy makes of them
    logits = max(task.length for task in tasks) * shape.facts.vocab_size * (8 if shape.computed == 4 else 10)
    yield Phase(shape.embedding * shape.computed + logits, states)


def _drifts(config: Config, spec: EvaluationSpec, shape: Shape) -> Iterator[Phase]:
    """The dense block besides the other one, float64 states of a sequence, and the states of both networks."""
    tasks = _texts(spec, "drift")
    if not tasks or not spec.overlays:
        return
    states = sum(shape.states(text_tokens(task)) for task in tasks)
    batch = max(streamed(config, task.length, task.sequences or WHOLE_SPLIT) for task in tasks)
    outside = shape.reading(shape.embedding)
    yield Phase(outside.device, outside.host + states)
    reading = shape.reading_block(shape.block, overlaid=True)
    yield Phase(reading.device, reading.host + 2 * states)
    double = 32 * max(task.length for task in tasks) * shape.facts.hidden_size
    yield Phase(2 * shape.block + shape.batch(batch) + double, 2 * states)


def _texts(spec: EvaluationSpec, metric: str) -> list[TextTask]:
    return [task for task in spec.tasks if isinstance(task, TextTask) and task.metric == metric]


def _zero_shot(config: Config, shape: Shape, task: ZeroShotTask) -> Phase:
    """A whole model, or a streamed one with the states of a wave; ``auto`` on an accelerator needs the latter."""
    device = "cuda" if shape.machine.accelerator else "cpu"
    execution = config.execution.model_copy(update={"device": device})
    placed = config.model_copy(update={"execution": execution})
    host = zero_shot.memory(placed, shape.facts, shape.computed, task)
    if not shape.machine.accelerator:
        return Phase(host)
    if execution.zero_shot == "whole":
        return Phase(zero_shot.whole_bytes(shape.facts, shape.computed, execution.stream_tokens), host)
    states = min(zero_shot.STATES, shape.states(int(zero_shot.tokens(config, task))))
    batch = max(execution.stream_tokens, 1024)
    blocks, head = shape.block + shape.batch(batch), shape.embedding * shape.computed + LOGITS * (shape.computed + 8)
    outside = shape.reading(shape.embedding)
    return Phase(max(blocks, head, outside.device), states + outside.host)


def export(config: Config, spec: ExportSpec) -> Peak:
    """A tensor as read and as written; an embedding and two blocks to compare; all in the host's memory."""
    shape = shape_of(config, spec.subject.base)
    tensor, compared = max(shape.embedding, shape.largest), shape.embedding + 2 * shape.facts.block_parameters
    return Peak(NETWORK + 8 * tensor + 4 * compared)
