"""A GPU that runs out of memory: one line with what was asked for, and the settings that ask for less."""

from __future__ import annotations

import re

from freelunch.errors import FreelunchError, first_line
from freelunch.plan.config import ExecutionConfig, ZeroShotTask
from freelunch.plan.spec import Spec
from freelunch.plan.specs import (
    DenseSpec,
    EvaluationSpec,
    GramsSpec,
    ModelSpec,
    PrunedSpec,
    ReconstructedSpec,
    RetrainedSpec,
    ShardSpec,
)
from freelunch.vision.runs import ClassifierSpec, SparseClassifierSpec

_ASKED = re.compile(r"Tried to allocate ([\d.]+ \w+)")
_ROOM = re.compile(r"total capacity of ([\d.]+ \w+)(?: of which ([\d.]+ \w+) is free)?")


def out_of_memory(error: BaseException) -> bool:
    """Whether a failure is an accelerator's memory that is full."""
    import torch

    # CUDA's libraries, which take memory of their own, have no exception for it
    library = isinstance(error, RuntimeError) and "_STATUS_ALLOC_FAILED" in str(error)
    return library or isinstance(error, torch.OutOfMemoryError)


def explained(spec: Spec, execution: ExecutionConfig, error: BaseException) -> FreelunchError:
    """The failure of a stage in a sentence: which stage, the sizes, and what to change."""
    asked, room = _ASKED.search(str(error)), _ROOM.search(str(error))
    said = first_line(error)
    if asked:
        said = f"the GPU's memory is full: {asked[1]} more were asked for"
        if room:
            said += f", of {room[1]}" + (f" {room[2]} are free" if room[2] else " in all")
    return FreelunchError(f"{spec.stage} {spec.name}: {said}; {_remedy(spec, execution)}")


def _remedy(spec: Spec, execution: ExecutionConfig) -> str:
    """Which settings make a stage take less memory, with what they are now."""
    stream = f"lower execution.stream_tokens ({execution.stream_tokens})"
    largest = (
        "one matrix and its statistics, which no setting makes smaller, need a larger GPU or execution.device: cpu"
    )
    if isinstance(spec, ShardSpec):
        spec = spec.reconstructed
    match spec:
        case DenseSpec() | GramsSpec():
            return stream
        case PrunedSpec():
            return largest if spec.prune_inputs == "dense" else f"{stream}, or {largest}"
        case ReconstructedSpec(closed_form=True):
            return f"{stream}, or {largest}"
        case ReconstructedSpec() | RetrainedSpec():
            training = spec.training
            parts = [f"raise accumulation ({training.accumulation}) up to batch_size ({training.batch_size})"]
            parts += [f"lower batch_size or length ({_length(spec)})"]
            if isinstance(spec, RetrainedSpec):
                parts += [] if execution.checkpointing else ["set execution.checkpointing: true"]
                parts += ["train less than parametrization " + training.parametrization]
            else:
                parts += [] if spec.window == "matrix" else [f"take a smaller window than {spec.window}"]
                parts += [stream]
            return _listed(parts)
        case EvaluationSpec():
            whole = any(isinstance(task, ZeroShotTask) for task in spec.tasks) and execution.zero_shot != "streaming"
            return _listed([stream, *(["set execution.zero_shot: streaming"] if whole else [])])
        case ModelSpec() if spec.source.train is not None:
            train = spec.source.train
            return f"lower models.{spec.model}.train.batch_size ({train.batch_size}) or length ({train.length})"
        case ClassifierSpec():
            return f"lower classifiers.{spec.classifier}.batch_size ({spec.recipe.batch_size})"
        case SparseClassifierSpec():
            return f"lower batch_size ({spec.batch_size}) or calibration_images ({spec.calibration_images})"
    return largest


def _length(spec: ReconstructedSpec | RetrainedSpec) -> int:
    calibration = spec.calibration if isinstance(spec, RetrainedSpec) else spec.dense.calibration
    return calibration.length


def _listed(parts: list[str]) -> str:
    return ", or ".join(parts)
