"""Stage specs: a stage is a pure function of its spec, and its directory is named after the spec's hash.

A spec holds its own parameters and the specs it builds on, so its key covers everything that shapes its output, and
the copy of it in a manifest is enough to run the stage again.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter

# absolute: provenance follows relative imports, and the code of a method counts only where it is run
from freelunch.method import Method, parse_method
from freelunch.methods import slug
from freelunch.patterns import Structured

from .config import DataConfig, EvaluationTask, ModelConfig, Section

RESULTS = "results"
_LONGEST = 160  # of a label in a folder's name; the key tells cut ones apart
STAGES = ("models", "data", "calibration", "dense", "grams", "pruned", "recovered", "evaluation", "export")
"""Folders of the stages below ``results``, upstream first."""


class Spec(Section):
    """Parameters of one stage run. Subclasses name the stage by the folder their results lie in."""

    stage: str
    uncounted: ClassVar[frozenset[str]] = frozenset({"licence", "facts"})
    """Fields that do not change what is computed and so are no part of the key."""

    @property
    def label(self) -> str:
        """What a person calls this spec."""
        raise NotImplementedError

    def upstream(self) -> list[Spec]:
        """The specs whose results this stage reads."""
        return []

    @cached_property
    def key(self) -> str:
        """Eight hex digits over the parameters and the keys of everything upstream."""
        return hashlib.sha256(json.dumps(_counted(self), sort_keys=True).encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        return f"{self.label[:_LONGEST]}-{self.key}"

    @property
    def folder(self) -> PurePosixPath:
        """Directory of the results, relative to the working directory."""
        return PurePosixPath(RESULTS, self.stage, self.name)

    @property
    def manifest(self) -> str:
        """Path of the file whose presence says that the stage is done."""
        return str(self.folder / "manifest.json")


def _counted(value: Any) -> Any:
    if isinstance(value, Spec | Section):
        skip = Spec.uncounted
        return {field: _counted(getattr(value, field)) for field in type(value).model_fields if field not in skip}
    if isinstance(value, tuple | list):
        return [_counted(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _counted(item) for key, item in value.items()}
    return value


class ModelSpec(Spec):
    """A dense model as a Hugging Face directory of safetensors."""

    stage: Literal["models"] = "models"
    model: str
    source: ModelConfig

    @property
    def label(self) -> str:
        return self.model


class DataSpec(Spec):
    """The documents of a data set, in splits."""

    stage: Literal["data"] = "data"
    data: str
    source: DataConfig

    @property
    def label(self) -> str:
        return self.data


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

    def file(self, block: int) -> str:
        """Name of the file of a block."""
        return f"grams-{block:03d}.safetensors"

    @property
    def label(self) -> str:
        return self.dense.label

    def upstream(self) -> list[Spec]:
        return [self.dense.calibration.model, self.dense]


class PrunedSpec(Spec):
    """Masks of a pruned model, and the weights and biases that pruning changed.

    With ``prune_inputs: recovered`` there is no such stage: the recovery prunes as it goes.
    """

    stage: Literal["pruned"] = "pruned"
    dense: DenseSpec
    criterion: str
    pattern: str
    allocation: str
    refinement: str
    prune_inputs: Literal["dense", "sparse", "recovered"]
    seed: int

    @property
    def base(self) -> ModelSpec:
        """The dense model underneath."""
        return self.dense.calibration.model

    @property
    def overlays(self) -> list[PrunedSpec | ReconstructedSpec]:
        """What lies over the dense model, in the order of application."""
        return [self]

    @cached_property
    def method(self) -> Method:
        """What the four texts stand for."""
        return parse_method(self.criterion, self.pattern, self.allocation, self.refinement)

    @property
    def label(self) -> str:
        parts = [self.dense.calibration.model.label, slug(self.criterion), self.method.pattern.slug]
        parts += [slug(text.split("(")[0]) for text in (self.allocation,) if text != "uniform"]
        parts += [slug(text) for text in (self.refinement,) if text != "none"]
        return "-".join([*parts, *(inputs for inputs in (self.prune_inputs,) if inputs != "dense")])

    @property
    def grams(self) -> GramsSpec | None:
        """The Gram matrices of the dense model, if the method looks at them before it prunes."""
        method = self.method
        needed = method.needs_gram if self.prune_inputs == "dense" else method.is_global and method.criterion.needs_gram
        return GramsSpec(dense=self.dense) if needed else None

    def upstream(self) -> list[Spec]:
        return [self.dense.calibration.model, self.dense, *([self.grams] if self.grams else [])]


class ReconstructedSpec(Spec):
    """Weights of a pruned model after local reconstruction."""

    stage: Literal["recovered"] = "recovered"
    pruned: PrunedSpec
    recovery: Literal["reconstruct"]
    window: str | int
    flow: str
    parametrization: str
    trains_norms: bool
    loss: str
    optimizer: str
    learning_rate: float
    warmup: float
    epochs: int
    batch_size: int
    seed: int

    @property
    def label(self) -> str:
        window = self.window if isinstance(self.window, str) else f"{self.window}blocks"
        return f"{self.pruned.label}-{window}"

    @property
    def base(self) -> ModelSpec:
        """The dense model underneath."""
        return self.pruned.base

    @property
    def interleaved(self) -> bool:
        """Whether this stage prunes as it goes."""
        return self.pruned.prune_inputs == "recovered"

    @property
    def overlays(self) -> list[PrunedSpec | ReconstructedSpec]:
        """What lies over the dense model, in the order of application."""
        return [self] if self.interleaved else [self.pruned, self]

    def upstream(self) -> list[Spec]:
        pruning = self.pruned.upstream()
        return pruning if self.interleaved else [*pruning[:2], self.pruned]


class EvaluationSpec(Spec):
    """Metrics of one network: the dense model, a pruned one or a recovered one."""

    stage: Literal["evaluation"] = "evaluation"
    subject: ModelSpec | PrunedSpec | ReconstructedSpec
    data: tuple[DataSpec, ...]
    tasks: tuple[EvaluationTask, ...]

    @property
    def label(self) -> str:
        return f"{self.subject.label}-dense" if isinstance(self.subject, ModelSpec) else self.subject.label

    def upstream(self) -> list[Spec]:
        return [*self.overlays, self.base, *self.data]

    @property
    def base(self) -> ModelSpec:
        """The dense model underneath."""
        return self.subject if isinstance(self.subject, ModelSpec) else self.subject.base

    @property
    def overlays(self) -> list[PrunedSpec | ReconstructedSpec]:
        """What lies over the dense model, in the order of application."""
        return [] if isinstance(self.subject, ModelSpec) else self.subject.overlays


class ExportSpec(Spec):
    """A pruned or recovered network as a Hugging Face directory."""

    stage: Literal["export"] = "export"
    subject: PrunedSpec | ReconstructedSpec

    @property
    def label(self) -> str:
        return self.subject.label

    @property
    def pruned(self) -> PrunedSpec:
        """How the network was pruned."""
        return self.subject if isinstance(self.subject, PrunedSpec) else self.subject.pruned

    @property
    def structured(self) -> bool:
        """Whether whole heads and channels are pruned, which the dense stage tells apart."""
        return isinstance(self.pruned.method.pattern, Structured)

    def upstream(self) -> list[Spec]:
        return [self.subject.base, *self.subject.overlays, *([self.pruned.dense] if self.structured else [])]


AnySpec = (
    ModelSpec
    | DataSpec
    | CalibrationSpec
    | DenseSpec
    | GramsSpec
    | PrunedSpec
    | ReconstructedSpec
    | EvaluationSpec
    | ExportSpec
)
_SPECS: TypeAdapter[Spec] = TypeAdapter(Annotated[AnySpec, Field(discriminator="stage")])


def parse_spec(raw: Any) -> Spec:
    """A spec from its dump, such as the ``spec`` of a manifest."""
    return _SPECS.validate_python(raw)
