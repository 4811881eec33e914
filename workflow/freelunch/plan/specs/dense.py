"""Specs of a dense model and of what is known of it: data, calibration, activations, Gram matrices."""

from __future__ import annotations

from typing import Literal

from ..config import DataConfig, ModelConfig, Questions
from .spec import Spec
from .training import training_of


class DataSpec(Spec):
    """The documents of a data set, in splits."""

    stage: Literal["data"] = "data"
    data: str
    source: DataConfig

    @property
    def label(self) -> str:
        return self.data


class QuestionsSpec(Spec):
    """Questions about the articles of a test split."""

    stage: Literal["questions"] = "questions"
    data: DataSpec
    fields: Questions

    @property
    def label(self) -> str:
        return self.data.label

    @property
    def source(self) -> DataConfig:
        """Where the records are read that the documents come from."""
        return self.data.source

    def upstream(self) -> list[Spec]:
        return [self.data]


class ModelSpec(Spec):
    """A dense model as a Hugging Face directory of safetensors."""

    stage: Literal["models"] = "models"
    model: str
    source: ModelConfig
    data: DataSpec | None = None
    """What a model with source ``train`` is trained on."""

    @property
    def label(self) -> str:
        return self.model

    @property
    def resumed(self) -> bool:
        return self.source.train is not None

    @property
    def modules(self) -> list[str]:
        """Modules of the package that train it, if it is not there yet."""
        train = self.source.train
        return [] if train is None else ["stages.train_model", *training_of(train).modules]

    def upstream(self) -> list[Spec]:
        return [] if self.data is None else [self.data]


class CalibrationSpec(Spec):
    """Token crops to calibrate and train on, and crops to validate on."""

    stage: Literal["calibration"] = "calibration"
    model: ModelSpec
    data: DataSpec
    sequences: int
    validation_sequences: int
    length: int
    sampling: Literal["document", "packed"]
    seed: int

    @property
    def label(self) -> str:
        return f"{self.model.label}-{self.data.label}-{self.sequences}x{self.length}-seed{self.seed}"

    def upstream(self) -> list[Spec]:
        return [self.model, self.data]


class DenseSpec(Spec):
    """The dense model's activations on the calibration set."""

    stage: Literal["dense"] = "dense"
    calibration: CalibrationSpec

    @property
    def label(self) -> str:
        return self.calibration.label

    def upstream(self) -> list[Spec]:
        return [self.calibration.model, self.calibration]


class GramsSpec(Spec):
    """Gram matrices of the inputs of every matrix, for the methods that ask for them."""

    stage: Literal["grams"] = "grams"
    dense: DenseSpec

    @staticmethod
    def file(block: int) -> str:
        """Name of the file of a block."""
        return f"grams-{block:03d}.safetensors"

    @property
    def label(self) -> str:
        return self.dense.label

    def upstream(self) -> list[Spec]:
        return [self.dense.calibration.model, self.dense]
