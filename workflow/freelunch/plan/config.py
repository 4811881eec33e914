"""The typed ``config.yaml``: every key, its type and its default. Unknown keys are errors that name the nearest one.

Imports neither torch nor transformers: every job of the workflow reads the config again.
"""

from __future__ import annotations

import reprlib
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

# absolute: provenance follows relative imports, and the code of a method counts only where it is run
from freelunch.method import canonical_allocation, canonical_criterion, canonical_pattern, canonical_refinement
from freelunch.parametrizations import canonical_parametrization
from freelunch.vision.config import ClassifierConfig, ImagesConfig

from ..errors import FreelunchError, suggest
from ..windows import canonical_targets, parse_window
from .section import Fraction, Hub, Name, Positive, Section, Seed, Wheel

# --- where models and data come from ---------------------------------------------------------------------------------


class Random(Section):
    """A randomly initialised model with a byte-level tokenizer, for trying things out."""

    config: dict[str, JsonValue]
    seed: int = 0


Length = Annotated[int, Field(gt=1)]
Schedule = Literal["linear", "cosine", "constant"]


class Train(Section):
    """A model trained from random weights on the calibration split of ``data``, with a byte-level BPE of that text.

    Keys that are axes as well mean the same here. The state of the lowest loss on the validation split is kept.
    """

    config: dict[str, JsonValue]
    """Of Hugging Face; the tokenizer has its ``vocab_size`` entries."""
    data: Name
    sequences: Positive
    validation_sequences: Positive = 32
    length: Length
    seed: Seed = 0
    """Of the weights, the order of documents and the order of batches."""
    learning_rate: Annotated[float, Field(gt=0)]
    schedule: Schedule = "linear"
    warmup: Fraction = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of AdamW, on matrices and the embedding."""
    epochs: Positive = 1
    batch_size: Positive
    clip: Annotated[float, Field(ge=0)] = 0.0


SOURCES = ("wheel", "hub", "path", "random", "train")


class Source(Section):
    """Exactly one of the kinds of source."""

    wheel: Wheel | None = None
    hub: Hub | None = None
    path: str | None = None
    random: Random | None = None
    train: Train | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Source:
        given = [kind for kind in SOURCES if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(SOURCES)}; found {', '.join(given) or 'none'}")
        return self


class ModelConfig(Source):
    """A causal language model. ``facts`` names its row in workflow/references/models.yaml (default: the hub id)."""

    facts: str | None = None
    family: Name | None = None
    """Models of one family are a series by size; those without one are a series together. Told in the rows alone."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    licence: str = ""


Split = Literal["calibration", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class Questions(Section):
    """Fields of a record, besides its text, that questions about it are made of (see ``freelunch.questions``)."""

    title: str | None = None
    """What the article is about."""
    description: str | None = None
    """A line that says what that is."""
    topic: str | None = None
    """One of few words that sort the articles."""
    no_topic: tuple[str, ...] = ()
    """Values of ``topic`` that mean none."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of the wrong answers and of their order."""


class DataConfig(Source):
    """A text data set, one document per record.

    ``splits`` maps calibration, validation and test either to fractions of the documents (drawn by document id, so no
    document is in two splits) or to names of the source's own splits or files.
    """

    splits: dict[Split, float | str]
    text: str = "text"
    identifier: str | None = None
    separator: str = "\n\n"
    max_documents: Annotated[int, Field(gt=0)] | None = None
    questions: Questions | None = None
    """What zero-shot tasks ask about it; counts for their keys alone."""
    licence: str = ""

    @model_validator(mode="after")
    def _data_splits(self) -> DataConfig:
        fractions = [value for value in self.splits.values() if isinstance(value, float)]
        if fractions and (len(fractions) != len(self.splits) or min(fractions) <= 0 or sum(fractions) > 1 + 1e-9):
            raise ValueError("splits are either all names, or fractions above 0 that add up to at most 1")
        for kind in ("random", "train"):
            if getattr(self, kind) is not None:
                raise ValueError(f"a data set has no {kind} source")
        if self.hub is not None and self.hub.pickled:
            raise ValueError("a data set has no pickled weights")
        return self


# --- the axes of a run -----------------------------------------------------------------------------------------------


def _checked(parse: Any) -> BeforeValidator:
    def check(value: Any) -> Any:
        parse(value)
        return value

    return BeforeValidator(check)


def _rate(value: Any) -> Any:
    """A learning rate; checked by hand, since the message of a union says everything twice."""
    try:
        if value != "auto" and not 0 < float(value) < float("inf"):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError("a learning rate is auto, or a number above 0") from None
    return value


Flow = Literal["dense", "sparse_local", "sparse_dense", "official_matrix"]
Loss = Literal["mse", "normalized_mse", "cosine", "cross_entropy", "kl"]
LOSSES: dict[str, tuple[Loss, ...]] = {
    "reconstruct": ("mse", "normalized_mse", "cosine"),
    "retrain": ("cross_entropy", "kl"),
}
"""Losses of each recovery, its default first."""
WindowText = Annotated[str | int, _checked(parse_window)]


class Axes(Section):
    """What defines one run. Every axis has the same name here, in specs, in ``rows.csv`` and in the tables."""

    model: Name
    calibration: Name
    """Name of the data set whose calibration split is sampled."""
    sequences: Positive = 128
    validation_sequences: Positive = 32
    length: Length = 2048
    """Tokens per sequence."""
    sampling: Literal["document", "packed"] = "document"
    """``document``: crops of documents longer than ``length`` (the paper's); ``packed``: crops of joined documents."""
    seed: Seed = 0

    criterion: Annotated[str, BeforeValidator(canonical_criterion)] = "wanda"
    """A module of ``freelunch.criteria``; with settings ``ria(alpha=1)``."""
    pattern: Annotated[str, BeforeValidator(canonical_pattern)] = "50%"
    allocation: Annotated[str, BeforeValidator(canonical_allocation)] = "uniform"
    """A module of ``freelunch.allocations``: how the sparsity is spread over matrices."""
    refinement: Annotated[str, BeforeValidator(canonical_refinement)] = "none"
    """Modules of ``freelunch.refinements``, joined by ``+``: what is done to the pruned matrices."""
    prune_inputs: Literal["dense", "sparse", "recovered"] = "dense"
    """What criteria see: the dense model's activations, or those behind the pruned, or the recovered, blocks before."""

    recovery: Literal["none", "reconstruct", "retrain", "repair"] = "reconstruct"
    window: WindowText = "attention_mlp"
    flow: Flow = "dense"
    """What windows are trained on: ``dense`` X to f(X), ``sparse_local`` X̂ to f(X̂), ``sparse_dense`` X̂ to f(X), where X̂
    comes from the pruned and recovered blocks before; ``official_matrix`` is a replica of a defect (see ``flows``)."""
    repair: Literal["channel", "layer", "shrink"] = "shrink"
    """What one scale is fitted to: an output channel, a matrix, or channels shrunk towards their matrix."""
    parametrization: Annotated[str, BeforeValidator(canonical_parametrization)] = "full + biases + norms"
    """Modules of ``freelunch.parametrizations``, joined by ``+``: which parameters are trained, and how."""
    targets: Annotated[str, BeforeValidator(canonical_targets)] = "all"
    """Matrices that are trained, by the last part of their names, joined by ``+``."""
    training_sequences: Positive | None = None
    """Sequences that recovery trains on; those that pruning saw if not given."""
    loss: Loss | None = None
    """``mse`` if not given, ``cross_entropy`` when retraining."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Annotated[float | Literal["auto"], BeforeValidator(_rate)] = 1e-4
    """Its peak; with ``auto`` each window searches its own (see ``recovery.rates``)."""
    schedule: Schedule = "linear"
    """How the learning rate goes on after the warm-up."""
    warmup: Fraction = 0.1
    """Fraction of the steps over which the learning rate rises linearly."""
    epochs: Positive = 1
    batch_size: Positive = 2
    """Sequences per optimiser step."""
    accumulation: Positive = 1
    """Parts in which the sequences of a step are run: less memory, the same gradient."""
    clip: Annotated[float, Field(ge=0)] = 0.0
    """Norm that gradients are clipped to; 0: they are not."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Validations without a lower loss after which training stops; 0: it does not."""


AXES = tuple(Axes.model_fields)


def _value(axis: str, value: Any) -> Any:
    """A value of an axis, as runs have it."""
    field = Axes.model_fields[axis]
    kind: Any = Annotated[field.annotation, field]
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{axis}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


class Task(Section):
    """A measurement."""

    metric: str
    only: dict[str, list[Any]] = {}
    """Values of axes; runs with others are not measured. The dense model always is, but for its own axis ``model``."""

    @field_validator("only", mode="before")
    @classmethod
    def _values(cls, only: Any) -> Any:
        if not isinstance(only, dict):
            return only
        found = {}
        for axis, values in only.items():
            if axis not in AXES:
                raise ValueError(f"unknown axis {axis!r}; {suggest(str(axis), AXES)}")
            if values == []:
                raise ValueError(f"{axis}: the list is empty")
            found[axis] = [_value(axis, value) for value in (values if isinstance(values, list) else [values])]
        return found


class TextTask(Task):
    """A measurement on the joined text of some splits, in non-overlapping windows of ``length`` tokens."""

    data: Name
    splits: tuple[Split, ...] = ("test",)
    length: Length = 2048
    sequences: Positive | None = None
    """Windows used, from the start of the text; all of them if not given."""
    too_long: Literal["refuse", "skip"] = "refuse"
    """What becomes of the task for a model whose context is shorter than ``length``."""


class PerplexityTask(TextTask):
    """Perplexity of the text."""

    metric: Literal["perplexity"] = "perplexity"


class DriftTask(TextTask):
    """Distance of the output of every block from the dense one's; not measured of the dense model."""

    metric: Literal["drift"]


class ZeroShotTask(Task):
    """Tasks of lm-eval, by the names it has for them, and those of ``workflow/tasks``, which ask about ``data``."""

    metric: Literal["zero_shot"]
    tasks: Annotated[tuple[Name, ...], Field(min_length=1)]
    data: Name | None = None
    """The data set that tasks of ``workflow/tasks`` ask about; those of lm-eval bring their own."""
    limit: Positive | None = None
    """Examples of every task, from its first; all of them if not given."""
    shots: Annotated[int, Field(ge=0)] | None = None
    """Solved examples before each question; if not given, as many as the task says (mostly none)."""

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{twice[0]} is there twice")
        return names


TASKS: dict[str, type[Task]] = {"perplexity": PerplexityTask, "drift": DriftTask, "zero_shot": ZeroShotTask}
"""Kinds of tasks by their metric."""


def _metric(task: Any) -> Any:
    return task.get("metric", "perplexity") if isinstance(task, dict) else getattr(task, "metric", "perplexity")


EvaluationTask = Annotated[
    Annotated[PerplexityTask, Tag("perplexity")]
    | Annotated[DriftTask, Tag("drift")]
    | Annotated[ZeroShotTask, Tag("zero_shot")],
    Discriminator(_metric),
]


class SuiteConfig(Section):
    """A study: runs (products of axes), what to measure, and the views to draw. The dense model is always a run."""

    description: str = ""
    include: list[Name] = []
    """Suites whose runs are runs of this one too; what is measured of them is this one's."""
    defaults: dict[str, Any] = {}
    """Axes of its own runs."""
    runs: list[dict[str, Any]] = []
    """With the axis ``classifier`` they are of classifiers, which have axes of their own (``vision.config``)."""
    evaluate: tuple[EvaluationTask, ...] = ()
    """Of language models; of classifiers the accuracy is measured."""
    tables: list[Name] = []
    figures: list[Name] = []


class DenseConfig(Section):
    """The dense cache. Its budget decides how many block boundaries are kept, not what comes out."""

    max_gib: Annotated[float, Field(gt=0)] = 64.0


class ExecutionConfig(Section):
    """How jobs run, not what they compute: never part of a key."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda)$")] = "auto"
    products: Literal["auto", "float32"] = "auto"
    """What models of 16 bits are computed in: ``auto`` is float32 only on CPUs without fast products of 16 bits."""
    stream_tokens: Positive = 8192
    """Tokens per forward batch when streaming."""
    deterministic: bool = False
    """Whether an accelerator may only use algorithms that give the same bits every time. A CPU does in any case."""
    compile: bool = False
    """Whether what is trained is compiled first (``torch.compile``)."""
    checkpointing: bool = True
    """Whether retraining computes the activations of a block again in the backward pass, to save memory."""
    shards: Positive = 1
    """Jobs that the windows of one reconstruction are split into: in parallel with flow ``dense``, else in a chain."""
    zero_shot: Literal["auto", "whole", "streaming"] = "auto"
    """How zero-shot tasks are run: with the ``whole`` model in memory, or ``streaming`` its blocks; ``auto`` does the
    first where it fits."""
    run_model_code: bool = False
    """Whether tasks may run code that the model wrote (humaneval), without a sandbox."""


class Config(Section):
    """The whole ``config.yaml``."""

    default_suite: Name
    models: dict[Name, ModelConfig]
    data: dict[Name, DataConfig]
    images: dict[Name, ImagesConfig] = {}
    classifiers: dict[Name, ClassifierConfig] = {}
    defaults: dict[str, Any] = {}
    """Axes of language models."""
    dense: DenseConfig = DenseConfig()
    execution: ExecutionConfig = ExecutionConfig()
    suites: dict[Name, SuiteConfig]


def parse_config(raw: Any) -> Config:
    """Validate a parsed ``config.yaml``, without looking at what the suites expand to (``plan`` does that).

    Raises:
        FreelunchError: one line per problem, each with the key, what was found and what is allowed.
    """
    if not isinstance(raw, dict):
        raise FreelunchError(f"the config is a {type(raw).__name__}, not a mapping of sections")
    return validate(Config, raw)


Kind = TypeVar("Kind", bound=BaseModel)
_QUOTES = "'\""
_SHOWN = reprlib.Repr()
"""Shows what was found, cut: a value may be as large as the file."""
_SHOWN.maxlevel, _SHOWN.maxstring, _SHOWN.maxother, _SHOWN.maxlong = 3, 100, 100, 100


def validate(kind: type[Kind], raw: Any, where: str = "") -> Kind:
    """``kind.model_validate`` with readable errors; ``where`` is the path of ``raw`` in the config."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(kind, dict(problem), where) for problem in error.errors()]
        raise FreelunchError("\n".join(lines)) from None


def _explain(kind: type[BaseModel], problem: dict[str, Any], where: str) -> str:
    path = [where] if where else []
    for before, step in zip((None, *problem["loc"]), problem["loc"], strict=False):
        # the kind of a task stands in the location of a failure, and not in the config
        if not (isinstance(before, int) and step in TASKS):
            path.append(f"{path.pop() if path else ''}[{step}]" if isinstance(step, int) else str(step))
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key; {suggest(str(problem['loc'][-1]), _fields_at(kind, problem['loc'][:-1]))}"
    if problem["type"] == "missing":
        return f"{key}: this key is missing"
    if problem["type"] == "union_tag_invalid":
        shown = _SHOWN.repr(problem["ctx"]["tag"])
        return f"{key}.metric: {shown} is not possible; {suggest(shown.strip(_QUOTES), TASKS)}"
    shown = _SHOWN.repr(problem["input"])
    if problem["type"] == "literal_error":
        allowed = [word.strip(" '") for word in problem["ctx"]["expected"].replace(" or ", ", ").split(",")]
        return f"{key}: {shown} is not possible; {suggest(shown.strip(_QUOTES), allowed)}"
    message = problem["msg"].removeprefix("Value error, ")
    found = f" (found {shown})" if len(shown) < 80 and shown not in message else ""
    return f"{key}: {message}{found}" if key else f"{message}{found}"


def _fields_at(kind: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """The keys allowed at a location of the config, found by walking the annotations."""
    current: Any = kind
    for step in location:
        if not isinstance(current, type) and step in TASKS:
            current = TASKS[step]
        elif isinstance(current, type) and issubclass(current, BaseModel) and step in current.model_fields:
            current = current.model_fields[step].annotation
        elif get_args(current):
            current = get_args(current)[-1] if get_origin(current) is dict else get_args(current)[0]
        models = [arm for arm in get_args(current) if isinstance(arm, type) and issubclass(arm, BaseModel)]
        if get_origin(current) in (Union, UnionType) and models:
            current = models[0]
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []
