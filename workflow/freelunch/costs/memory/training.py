"""Recoveries that train, and models trained from random weights."""

from __future__ import annotations

from ...parametrizations import parse_parametrization
from ...plan.config import Config, Train
from ...plan.specs import CalibrationSpec, ModelSpec, ReconstructedSpec, RetrainedSpec, ShardSpec, Training
from ...windows import MATRICES, parse_window
from ..basis import block_weights, mlp_weights
from .peak import HOLES, NETWORK, Peak, Phase, peak
from .pruning import prune
from .shape import Shape, shape_of, streamed

WINDOW_TOKENS, RETRAINED_TOKENS = 2048, 1024
"""Of a batch of windows that is validated, and of one of whole models."""
SCATTERED = 1.05
"""Weights in training, with all that is kept of them, over their sum: allocators leave gaps between tensors."""


def shard(config: Config, spec: ShardSpec) -> Peak:
    return reconstruct(config, spec.reconstructed)


def reconstruct(config: Config, spec: ReconstructedSpec) -> Peak:
    """A window in training, or being validated, or its targets being computed; and the pruning that is done in it."""
    calibration = spec.dense.calibration
    shape = shape_of(config, calibration.model)
    trained, blocks = _window(spec, shape)
    batch = streamed(config, calibration.length, max(calibration.sequences, calibration.validation_sequences))
    phases = [shape.reading_block(), Phase(shape.block + shape.batch(batch))]
    if spec.closed_form:
        phases.append(Phase(12 * trained + 16.0 * shape.columns**2 + 2**28))
    else:
        # what else its blocks hold is not trained
        frozen = blocks * shape.block - trained * shape.computed
        step = _step(spec.training, calibration)
        validated = _validated(WINDOW_TOKENS, calibration)
        stepping, validating = _weights(spec.training, shape)
        phases += [
            shape.reading_block(max(0.0, blocks - 1) * shape.block, overlaid=True),
            Phase(frozen + SCATTERED * trained * stepping + _activations(shape, step, blocks) + _batches(shape, step)),
            Phase(frozen + SCATTERED * trained * validating + shape.batch(validated) + _batches(shape, validated)),
        ]
    tokens = (calibration.sequences + calibration.validation_sequences) * calibration.length
    found = peak(shape.machine, NETWORK + HOLES, phases, _pairs(spec, shape, tokens))
    return found.beside(prune(config, spec.pruned)) if spec.interleaved else found


def _window(spec: ReconstructedSpec, shape: Shape) -> tuple[int, float]:
    """Weights of the largest window, and the blocks that it lies in."""
    facts, halves = shape.facts, parse_window(spec.window)
    if spec.window in MATRICES:
        return shape.largest, 1
    if halves == 1:
        return max(facts.block_parameters - mlp_weights(facts), mlp_weights(facts)), 1
    blocks = min(halves // 2 if halves else facts.num_hidden_layers, facts.num_hidden_layers)
    return blocks * facts.block_parameters, blocks


def _pairs(spec: ReconstructedSpec, shape: Shape, tokens: int) -> float:
    """Bytes of the files of inputs and targets: those between block boundaries have the digits of products."""
    if spec.window in MATRICES:
        widest = max(rows + columns for rows, columns in shape.facts.matrices.values())
        return shape.kept(tokens) + tokens * widest * shape.computed
    return shape.kept(tokens) + (shape.states(tokens) if parse_window(spec.window) == 1 else shape.kept(tokens))


def retrain(config: Config, spec: RetrainedSpec) -> Peak:
    """All blocks in training or being validated, and the logits of what they are run on."""
    calibration, training = spec.calibration, spec.training
    shape = shape_of(config, calibration.model)
    facts, step = shape.facts, _step(training, calibration)
    validated = _validated(RETRAINED_TOKENS, calibration)
    logits = 4 * facts.vocab_size * (2 if spec.dense else 1)
    kept = 1 if config.execution.checkpointing else facts.num_hidden_layers
    states = facts.num_hidden_layers * 4 * step * facts.hidden_size
    outside = (1 if facts.tie_word_embeddings else 2) * shape.embedding * shape.computed
    stepping, validating = (SCATTERED * block_weights(facts) * each + outside for each in _weights(training, shape))
    phases = [
        shape.reading(shape.embedding),
        Phase(stepping + 3 * logits * step + states + _activations(shape, step, kept)),
        Phase(validating + 2 * logits * validated + shape.batch(validated)),
    ]
    return peak(shape.machine, NETWORK + HOLES, phases)


def pretrain(config: Config, spec: ModelSpec, train: Train) -> Peak:
    """All of a model, with all activations and the logits of a step."""
    shape = shape_of(config, spec)
    facts, step = shape.facts, train.batch_size * train.length
    # float32 weights, gradients, two moments, and the rounded ones that are validated; copies of the best state
    weights = facts.parameters * (4 + 4 + 8 + 4 + 2 * shape.saved)
    activations = 14 * step * (facts.hidden_size + facts.intermediate_size) * 4 * facts.num_hidden_layers
    return peak(shape.machine, NETWORK, [Phase(weights + activations + 3 * 4 * step * facts.vocab_size)])


def _step(training: Training, calibration: CalibrationSpec) -> int:
    """Tokens that go forward and backward at a time."""
    return -(-training.batch_size // training.accumulation) * calibration.length


def _validated(tokens: int, calibration: CalibrationSpec) -> int:
    """Tokens that are validated at a time."""
    return min(max(1, tokens // calibration.length), calibration.validation_sequences) * calibration.length


def _weights(training: Training, shape: Shape) -> tuple[float, float]:
    """Bytes per weight of what is trained: in a step, and while what would be saved is validated."""
    cast = 2 if shape.computed < 4 else 0  # autocast keeps what it rounded
    searched = 4 if training.learning_rate == "auto" else 0  # the initial weights, for the next rate
    parts = parse_parametrization(training.parametrization)
    if any(part.whole for part in parts):
        # float32 weights and what the optimiser keeps, the mask, the best state
        held = 4 + (8 if training.optimizer == "adamw" else 4) + 1 + shape.saved + cast + searched
        return held + 4, held + shape.saved + 4  # gradients; the state at hand, rounded and then computed with
    # frozen weights, the mask, the weight that training computes with, its gradient
    low_rank = shape.computed + 1 + (10 if any(part.matrices for part in parts) else 0) + 2 * shape.saved
    return low_rank, low_rank


def _activations(shape: Shape, step: int, blocks: float) -> float:
    """Bytes that are kept of a step for the backward pass of some blocks, and the gradients of the widest of them."""
    facts = shape.facts
    kept = 4 * shape.computed * facts.intermediate_size + 10 * 4 * facts.hidden_size
    return step * (max(1, blocks) * kept + 3 * shape.computed * facts.intermediate_size)


def _batches(shape: Shape, tokens: int) -> float:
    """A batch and the one that is read ahead: inputs and targets in float32."""
    return 2 * 2 * 4 * tokens * shape.facts.hidden_size
