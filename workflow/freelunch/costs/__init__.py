"""What a stage will need: disk, memory and operations, from its spec and the model's shape, before anything runs.

Operations count a multiply-add as two. A forward pass over ``T`` tokens through ``P`` weights is ``2 P T``, a backward
pass twice that; attention adds ``4 T L d`` per block for sequences of ``L`` tokens and ``d`` query channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..plan.config import Config
from ..plan.spec import Spec
from ..plan.specs import (
    CalibrationSpec,
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
from ..vision.runs import ClassifierSpec, ImagesSpec, SparseClassifierSpec
from . import pruning, streaming, training, vision
from .basis import Cost, forward_operations
from .memory import Peak, memory

__all__ = ["Cost", "Peak", "cost", "forward_operations", "memory"]

_COSTS: dict[type[Spec], Callable[[Config, Any], Cost]] = {
    ModelSpec: streaming.model,
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


def cost(config: Config, spec: Spec) -> Cost:
    """Needs of one stage run; memory is that of the host."""
    found = _COSTS[type(spec)](config, spec) if type(spec) in _COSTS else Cost()
    return replace(found, memory=memory(config, spec).host)
