"""Specs of the stages for language models: data, the dense model, pruned and recovered networks, what is measured."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, ClassVar, Literal

from freelunch.plan.config import (
    Axes,
    DataConfig,
    EvaluationTask,
    ExecutionConfig,
    Flow,
    Loss,
    ModelConfig,
    Questions,
    Schedule,
    Source,
    Train,
    ZeroShotTask,
)
from freelunch.plan.facts import facts_of_source
from freelunch.plan.section import OPTIONAL, Section
from freelunch.plan.spec import ONE_MATRIX, MeasuredSpec, Spec
from freelunch.pruning.method import Method, parse_method
from freelunch.pruning.methods import slug
from freelunch.pruning.patterns import Structured
from freelunch.recover.parametrizations import parse_parametrization


class Training(Section):
    """Which parameters are trained, and how; see ``config.Axes`` for each."""

    parametrization: str = Axes.model_fields["parametrization"].default
    targets: str = "all"
    loss: Loss = "mse"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float | Literal["auto"] = 1e-4
    schedule: Schedule = "linear"
    warmup: float = 0.1
    epochs: int = 1
    batch_size: int = 2
    accumulation: int = 1
    clip: float = 0.0
    patience: int = 0
    seed: int = 0

    @property
    def modules(self) -> list[str]:
        """Modules of the package that hold the parts of the parametrization."""
        return [type(part).__module__.split(".", 1)[1] for part in parse_parametrization(self.parametrization)]

    @property
    def suffix(self) -> str:
        """Of the label of what is trained: the parametrization, unless it is the default."""
        default = Training.model_fields["parametrization"].default
        return "" if self.parametrization == default else f"-{slug(self.parametrization)}"


def training_of(train: Train) -> Training:
    """How a model is trained from random weights: all of its parameters."""
    same = {name: getattr(train, name) for name in Training.model_fields if name in Train.model_fields}
    return Training(parametrization="full + biases + norms", loss="cross_entropy", **same)


def _stream(execution: ExecutionConfig) -> str:
    return f"lower execution.stream_tokens ({execution.stream_tokens})"


def _batches(training: Training, calibration: CalibrationSpec) -> list[str]:
    """What makes the batches of a training smaller."""
    return [
        f"raise accumulation ({training.accumulation}) up to batch_size ({training.batch_size})",
        f"lower batch_size or length ({calibration.length})",
    ]


# --- data, the dense model, and what is known of it ------------------------------------------------------------------


class DataSpec(Spec):
    """The documents of a data set, in splits."""

    stage: Literal["data"] = "data"
    work: ClassVar[str] = "prepare data"
    minutes: ClassVar[int] = 120
    data: str
    source: DataConfig

    @property
    def label(self) -> str:
        return self.data

    @property
    def entry(self) -> tuple[str, str, Section]:
        return "data", self.data, self.source


class ModelSpec(Spec):
    """A dense model as a Hugging Face directory of safetensors."""

    stage: Literal["models"] = "models"
    work: ClassVar[str] = "prepare model"
    minutes: ClassVar[int] = 240
    model: str
    source: ModelConfig
    data: Annotated[DataSpec | None, OPTIONAL] = None
    """What a model with source ``train`` is trained on."""

    @property
    def label(self) -> str:
        return self.model

    @property
    def entry(self) -> tuple[str, str, Section]:
        return "models", self.model, self.source

    @property
    def resumed(self) -> bool:
        return self.gpu

    @property
    def gpu(self) -> bool:
        return self.source.train is not None

    @property
    def threaded(self) -> bool:
        return True

    @property
    def runtime(self) -> int:
        return 1440 if self.gpu else self.minutes

    @cached_property
    def largest_matrix(self) -> int:
        """Weights of the largest matrix in a block."""
        return max(rows * columns for rows, columns in facts_of_source(self.model, self.source).matrices.values())

    def small(self, operations: float) -> bool:
        return self.largest_matrix < 2**19

    def remedy(self, execution: ExecutionConfig) -> str:
        train = self.source.train
        if train is None:
            return ONE_MATRIX
        return f"lower models.{self.model}.train.batch_size ({train.batch_size}) or length ({train.length})"

    @property
    def modules(self) -> list[str]:
        train = self.source.train
        return [] if train is None else ["stages.train_model", *training_of(train).modules]

    def upstream(self) -> list[Spec]:
        return [] if self.data is None else [self.data]


class QuestionsSpec(Spec):
    """Questions about the articles of a test split."""

    stage: Literal["questions"] = "questions"
    work: ClassVar[str] = "make questions"
    minutes: ClassVar[int] = 60
    data: DataSpec
    fields: Questions

    @property
    def label(self) -> str:
        return self.data.label

    @property
    def source(self) -> DataConfig:
        """What the records are read from that the documents come from."""
        return self.data.source

    @property
    def origin(self) -> Source:
        return self.source

    def upstream(self) -> list[Spec]:
        return [self.data]


class CalibrationSpec(Spec):
    """Token crops to calibrate and train on, and crops to validate on."""

    stage: Literal["calibration"] = "calibration"
    work: ClassVar[str] = "sample calibration"
    minutes: ClassVar[int] = 60
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
    work: ClassVar[str] = "dense pass"
    minutes: ClassVar[int] = 480
    computes: ClassVar[bool] = True
    calibration: CalibrationSpec

    @property
    def label(self) -> str:
        return self.calibration.label

    def remedy(self, execution: ExecutionConfig) -> str:
        return _stream(execution)

    def upstream(self) -> list[Spec]:
        return [self.calibration.model, self.calibration]


class GramsSpec(Spec):
    """Gram matrices of the inputs of every matrix, for the methods that ask for them."""

    stage: Literal["grams"] = "grams"
    work: ClassVar[str] = "Gram matrices"
    minutes: ClassVar[int] = 480
    computes: ClassVar[bool] = True
    dense: DenseSpec

    @staticmethod
    def file(block: int) -> str:
        """Name of the file of a block."""
        return f"grams-{block:03d}.safetensors"

    @property
    def label(self) -> str:
        return self.dense.label

    def remedy(self, execution: ExecutionConfig) -> str:
        return _stream(execution)

    def upstream(self) -> list[Spec]:
        return [self.dense.calibration.model, self.dense]


# --- pruned and recovered networks -----------------------------------------------------------------------------------


class PrunedSpec(Spec):
    """Masks of a pruned model, and the weights and biases that pruning changed.

    With ``prune_inputs: recovered`` there is no such stage: the recovery prunes as it goes.
    """

    stage: Literal["pruned"] = "pruned"
    work: ClassVar[str] = "prune"
    minutes: ClassVar[int] = 240
    computes: ClassVar[bool] = True
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
    def overlays(self) -> list[OverlaySpec]:
        """What lies over the dense model, in the order of application."""
        return [self]

    @property
    def gpu(self) -> bool:
        return self.threaded

    @property
    def threaded(self) -> bool:
        return self.base.largest_matrix >= 2**22

    def remedy(self, execution: ExecutionConfig) -> str:
        return ONE_MATRIX if self.prune_inputs == "dense" else f"{_stream(execution)}, or {ONE_MATRIX}"

    @property
    def modules(self) -> list[str]:
        return self.method.modules

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
        needed = method.needs_gram if self.prune_inputs == "dense" else method.needs_gram_first
        return GramsSpec(dense=self.dense) if needed else None

    def upstream(self) -> list[Spec]:
        return [self.dense.calibration.model, self.dense, *([self.grams] if self.grams else [])]


class RecoveredSpec(Spec):
    """What a recovery makes of a pruned model."""

    pruned: PrunedSpec

    @property
    def base(self) -> ModelSpec:
        """The dense model underneath."""
        return self.pruned.base

    @property
    def overlays(self) -> list[OverlaySpec]:
        """What lies over the dense model, in the order of application."""
        return [self.pruned, self]  # type: ignore[list-item]


class ShardSpec(Spec):
    """Some of the windows of a reconstruction, trained in a job of their own. Counts for no other key."""

    stage: Literal["shards"] = "shards"
    work: ClassVar[str] = "reconstruct, shard"
    minutes: ClassVar[int] = 1440
    computes: ClassVar[bool] = True
    reconstructed: ReconstructedSpec
    shard: int
    shards: int

    @property
    def label(self) -> str:
        return f"{self.reconstructed.label}-{self.shard + 1}of{self.shards}"

    @property
    def base(self) -> ModelSpec:
        """The dense model underneath."""
        return self.reconstructed.base

    @property
    def siblings(self) -> int:
        return self.shards

    def remedy(self, execution: ExecutionConfig) -> str:
        return self.reconstructed.remedy(execution)

    @property
    def modules(self) -> list[str]:
        return self.reconstructed.modules

    @property
    def resumed(self) -> bool:
        return True

    @property
    def before(self) -> list[ShardSpec]:
        """The shards whose windows this one goes on from."""
        return [self.changed(shard=shard) for shard in range(self.shard if self.reconstructed.sequential else 0)]

    def upstream(self) -> list[Spec]:
        return [*self.reconstructed.upstream(), *self.before]


class ReconstructedSpec(RecoveredSpec):
    """Weights of a pruned model after local reconstruction, window by window."""

    stage: Literal["reconstructed"] = "reconstructed"
    work: ClassVar[str] = "reconstruct"
    minutes: ClassVar[int] = 1440
    computes: ClassVar[bool] = True
    dense: DenseSpec
    """Of the sequences that are trained on."""
    window: str | int
    flow: Flow
    training: Training
    """Of windows in closed form only the parametrization and the targets count."""

    @property
    def label(self) -> str:
        window = self.window if isinstance(self.window, str) else f"{self.window}blocks"
        flow = "" if self.flow == "dense" else f"-{self.flow}"
        return f"{self.pruned.label}-{window}{flow}{self.training.suffix}"

    @property
    def interleaved(self) -> bool:
        """Whether this stage prunes as it goes."""
        return self.pruned.prune_inputs == "recovered"

    @property
    def modules(self) -> list[str]:
        return [*self.training.modules, *(self.pruned.modules if self.interleaved else [])]

    @property
    def resumed(self) -> bool:
        return True

    def small(self, operations: float) -> bool:
        return self.base.small(operations)

    def remedy(self, execution: ExecutionConfig) -> str:
        stream = _stream(execution)
        if self.closed_form:
            return f"{stream}, or {ONE_MATRIX}"
        smaller = [] if self.window == "matrix" else [f"take a smaller window than {self.window}"]
        return ", or ".join([*_batches(self.training, self.dense.calibration), *smaller, stream])

    @property
    def closed_form(self) -> bool:
        """Whether windows are solved for, not trained."""
        return self.window == "matrix_exact"

    @property
    def sequential(self) -> bool:
        """Whether every window goes on from those before it."""
        return self.flow != "dense" or self.interleaved

    @property
    def grams(self) -> GramsSpec | None:
        """The Gram matrices that windows in closed form are solved from."""
        return GramsSpec(dense=self.dense) if self.closed_form else None

    def split(self, shards: int) -> list[ShardSpec]:
        """The jobs that its windows are split into; none if it is one job, or in closed form."""
        if shards == 1 or self.closed_form:
            return []
        return [ShardSpec(reconstructed=self, shard=shard, shards=shards) for shard in range(shards)]

    @property
    def overlays(self) -> list[OverlaySpec]:
        return [self] if self.interleaved else [self.pruned, self]

    def upstream(self) -> list[Spec]:
        pruning = self.pruned.upstream() if self.interleaved else [self.base, self.pruned]
        extra = [self.dense, *([self.grams] if self.grams else [])]
        return [*pruning, *(spec for spec in extra if spec not in pruning)]


class RetrainedSpec(RecoveredSpec):
    """Weights of a pruned model that was trained as a whole on its outputs."""

    stage: Literal["retrained"] = "retrained"
    work: ClassVar[str] = "retrain"
    minutes: ClassVar[int] = 1440
    computes: ClassVar[bool] = True
    calibration: CalibrationSpec
    """The sequences that are trained on."""
    training: Training

    def remedy(self, execution: ExecutionConfig) -> str:
        recompute = [] if execution.checkpointing else ["set execution.checkpointing: true"]
        fewer = f"train less than parametrization {self.training.parametrization}"
        return ", or ".join([*_batches(self.training, self.calibration), *recompute, fewer])

    @property
    def modules(self) -> list[str]:
        return self.training.modules

    @property
    def resumed(self) -> bool:
        return True

    @property
    def label(self) -> str:
        return f"{self.pruned.label}-retrained-{self.training.loss}{self.training.suffix}"

    @property
    def dense(self) -> DenseSpec | None:
        """The dense states that logits to distil from are made of."""
        return DenseSpec(calibration=self.calibration) if self.training.loss == "kl" else None

    def upstream(self) -> list[Spec]:
        return [self.base, self.pruned, self.calibration, *([self.dense] if self.dense else [])]


class RepairedSpec(RecoveredSpec):
    """Weights of a pruned model, scaled so that outputs vary as much as the dense model's."""

    stage: Literal["repaired"] = "repaired"
    work: ClassVar[str] = "repair"
    minutes: ClassVar[int] = 240
    computes: ClassVar[bool] = True
    repair: Literal["channel", "layer", "shrink"]

    @property
    def label(self) -> str:
        return f"{self.pruned.label}-repaired-{self.repair}"

    @property
    def grams(self) -> GramsSpec:
        """Second moments of the inputs of every matrix."""
        return GramsSpec(dense=self.pruned.dense)

    def upstream(self) -> list[Spec]:
        return [self.base, self.pruned, self.pruned.dense, self.grams]


OverlaySpec = PrunedSpec | ReconstructedSpec | RetrainedSpec | RepairedSpec
"""What can lie over a dense model."""


# --- what is made of a network ---------------------------------------------------------------------------------------


class EvaluationSpec(MeasuredSpec):
    """Metrics of one network: the dense model, a pruned one or a recovered one."""

    stage: Literal["evaluation"] = "evaluation"
    work: ClassVar[str] = "evaluate"
    minutes: ClassVar[int] = 480
    computes: ClassVar[bool] = True
    rows: ClassVar[str] = "stages.collect:rows_of"
    subject: ModelSpec | OverlaySpec
    data: tuple[DataSpec | QuestionsSpec, ...]
    tasks: tuple[EvaluationTask, ...]

    @property
    def label(self) -> str:
        return f"{self.subject.label}-dense" if isinstance(self.subject, ModelSpec) else self.subject.label

    @property
    def zero_shot(self) -> bool:
        """Whether there are zero-shot tasks."""
        return any(isinstance(task, ZeroShotTask) for task in self.tasks)

    @property
    def modules(self) -> list[str]:
        """Modules of the package that ask zero-shot tasks, if there are any."""
        return ["evaluate.zero_shot"] if self.zero_shot else []

    @property
    def runtime(self) -> int:
        # such tasks of a large model take longer than all else that is measured
        return 1440 if self.zero_shot else self.minutes

    def small(self, operations: float) -> bool:
        return self.base.small(operations)

    def remedy(self, execution: ExecutionConfig) -> str:
        whole = self.zero_shot and execution.zero_shot != "streaming"
        return _stream(execution) + (", or set execution.zero_shot: streaming" if whole else "")

    def upstream(self) -> list[Spec]:
        return [*self.overlays, self.base, *self.data]

    @property
    def model(self) -> str:
        return self.base.model

    @property
    def read(self) -> list[Spec]:
        return [self, self.base, *self.overlays]

    @property
    def base(self) -> ModelSpec:
        """The dense model underneath."""
        return self.subject if isinstance(self.subject, ModelSpec) else self.subject.base

    @property
    def overlays(self) -> list[OverlaySpec]:
        """What lies over the dense model, in the order of application."""
        return [] if isinstance(self.subject, ModelSpec) else self.subject.overlays

    @property
    def texts(self) -> dict[str, DataSpec]:
        """The data sets whose text is read, by name."""
        return {data.data: data for data in self.data if isinstance(data, DataSpec)}

    @property
    def questions(self) -> dict[str, QuestionsSpec]:
        """The questions that are asked, by the name of the data set they are about."""
        return {asked.data.data: asked for asked in self.data if isinstance(asked, QuestionsSpec)}


class ExportSpec(Spec):
    """A pruned or recovered network as a Hugging Face directory."""

    stage: Literal["exported"] = "exported"
    work: ClassVar[str] = "export"
    minutes: ClassVar[int] = 120
    subject: OverlaySpec

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
