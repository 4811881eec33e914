"""How much memory a stage takes at its peak, of the host and of an accelerator, from its spec and the model's shape.

With ``B`` weights of a block, ``E`` of the embedding, ``L`` of the largest matrix and ``c`` its inputs, ``w`` trained
ones, ``s`` bytes of a number in files and ``p`` of one in products, the larger of

* ``E (s + p)`` and ``B p + L s`` where weights are read,
* ``B p`` and the activations of a batch where blocks are run, with two blocks' Gram matrices where they are collected,
* ``22 c² + 8 L`` or ``30 L`` where a matrix is pruned, with and without a Gram matrix,
* ``w (17 + s)`` in a step and ``w (17 + 2 s)`` in validation where a window is trained with AdamW, its other weights
  ``p``, and the activations of a step.

Depth is in none of them, nor is the number of calibration tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...plan.config import Config
from ...plan.spec import Spec
from ...plan.specs import (
    CalibrationSpec,
    DataSpec,
    DenseSpec,
    EvaluationSpec,
    ExportSpec,
    GramsSpec,
    ModelSpec,
    PrunedSpec,
    ReconstructedSpec,
    RepairedSpec,
    RetrainedSpec,
    ShardSpec,
)
from ...vision.runs import ClassifierSpec, ImagesSpec, SparseClassifierSpec
from . import pruning, streaming, training, vision
from .peak import NETWORK, Peak

__all__ = ["Peak", "memory"]

_PEAKS: dict[type[Spec], Callable[[Config, Any], Peak]] = {
    ModelSpec: streaming.model,
    DataSpec: streaming.data,
    CalibrationSpec: streaming.calibration,
    DenseSpec: streaming.dense,
    GramsSpec: streaming.grams,
    PrunedSpec: pruning.prune,
    ShardSpec: training.shard,
    ReconstructedSpec: training.reconstruct,
    RetrainedSpec: training.retrain,
    RepairedSpec: pruning.repair,
    EvaluationSpec: streaming.evaluate,
    ExportSpec: streaming.export,
    ImagesSpec: vision.images,
    ClassifierSpec: vision.train,
    SparseClassifierSpec: vision.prune,
}


def memory(config: Config, spec: Spec) -> Peak:
    """Memory of one stage run, on the machine that ``config.execution`` names."""
    return _PEAKS[type(spec)](config, spec) if type(spec) in _PEAKS else Peak(NETWORK)
