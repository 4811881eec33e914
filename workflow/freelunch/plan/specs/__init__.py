"""Stage specs: a stage is a pure function of its spec, and its directory is named after the spec's hash.

A spec holds its own parameters and the specs it builds on, so its key covers everything that shapes its output, and
the copy of it in a manifest is enough to run the stage again.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from .classifiers import ClassifierSpec, ImagesSpec, SparseClassifierSpec
from .dense import CalibrationSpec, DataSpec, DenseSpec, GramsSpec, ModelSpec, QuestionsSpec
from .pruned import PrunedSpec
from .recovered import (
    OverlaySpec,
    ReconstructedSpec,
    RecoveredSpec,
    RepairedSpec,
    RetrainedSpec,
    ShardSpec,
)
from .results import EvaluationSpec, ExportSpec
from .spec import RESULTS, STAGES, Spec
from .training import Training, training_of

__all__ = [
    "RESULTS", "STAGES", "AnySpec", "CalibrationSpec", "ClassifierSpec", "DataSpec", "DenseSpec", "EvaluationSpec",
    "ExportSpec", "GramsSpec", "ImagesSpec", "ModelSpec", "OverlaySpec", "PrunedSpec", "QuestionsSpec",
    "ReconstructedSpec", "RecoveredSpec", "RepairedSpec", "RetrainedSpec", "ShardSpec", "SparseClassifierSpec", "Spec",
    "Training", "parse_spec", "training_of",
]  # fmt: skip

AnySpec = (
    ModelSpec
    | DataSpec
    | QuestionsSpec
    | CalibrationSpec
    | DenseSpec
    | GramsSpec
    | PrunedSpec
    | ReconstructedSpec
    | ShardSpec
    | RetrainedSpec
    | RepairedSpec
    | EvaluationSpec
    | ExportSpec
    | ImagesSpec
    | ClassifierSpec
    | SparseClassifierSpec
)
_SPECS: TypeAdapter[Spec] = TypeAdapter(Annotated[AnySpec, Field(discriminator="stage")])


def parse_spec(raw: Any) -> Spec:
    """A spec from its dump, such as the ``spec`` of a manifest."""
    return _SPECS.validate_python(raw)
