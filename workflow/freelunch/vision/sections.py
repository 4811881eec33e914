"""What the config says of image data sets, classifiers and their runs. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from freelunch.plan.config import EXTENSIONS, Config, Source
from freelunch.plan.section import Name, NotNegative, Positive, Section, Seed
from freelunch.pruning.method import canonical_allocation, canonical_criterion, canonical_pattern
from freelunch.vision.architectures import ARCHITECTURES, check_architecture

COLOURS = {"wheel": 1, "hub": 3, "path": 3}
"""Channels by kind of source: tables in wheels are grey."""
Part = Literal["train", "test"]
PARTS: tuple[Part, ...] = get_args(Part)

Repair = Literal["channel", "layer", "shrink"]
"""The modes of ``recover.repair``, which imports torch."""
Backend = Literal[
    "none", "recalibrate_cumulative", "recalibrate", "recalibrate_epsilon", "channel", "layer", "shrink", "reconstruct",
]  # fmt: skip
BACKENDS: tuple[Backend, ...] = get_args(Backend)
"""Every backend but ``none`` ends with a recalibration: layer by layer, except for the cumulative one.

``recalibrate_epsilon`` is the control that tells whether a repair does more than escape the epsilon of batch norms:
the pruned network gets a much smaller one, and gains with which the dense network computes what it did, and is
recalibrated.
"""


class ImagesConfig(Source):
    """Images with labels: a table in a wheel, a data set of the hub, or folders on disk.

    A table is a gzipped CSV of square grey images: a row is the pixels, 0 to 255, and then the label. Pixels are
    normalised per channel by the training images.
    """

    splits: dict[Part, Positive | Annotated[str, Field(min_length=1)]]
    """`train` and `test`. `wheel`: numbers of images, drawn at random, so that no image is in both; `hub`: splits of
    the data set; `path`: subfolders, in which every folder is a class, numbered in the order of names"""
    size: Positive
    """side of the square that an image becomes: its shorter side is scaled, and the middle cropped. Images of a `wheel`
    have it already"""
    classes: Annotated[int, Field(gt=1)]
    """number of labels; what is read is checked against it"""
    image: str = "image"
    """field of a `hub` record that holds the image"""
    label: str = "label"
    """field of a `hub` record that holds its label"""
    max_images: Positive | None = None
    """of each split, the first; of folders from the classes in turn"""
    seed: Seed = 0
    """of the drawing"""

    @property
    def kind(self) -> str:
        """``wheel``, ``hub`` or ``path``."""
        return next(kind for kind in self.kinds if getattr(self, kind) is not None)

    @property
    def channels(self) -> int:
        return COLOURS[self.kind]

    @model_validator(mode="after")
    def _splits_of_the_source(self) -> ImagesConfig:
        if set(self.splits) != set(PARTS):
            raise ValueError("splits are train and test")
        wanted = int if self.wheel is not None else str
        if any(not isinstance(value, wanted) for value in self.splits.values()):
            kind = "numbers of images" if self.wheel is not None else "names"
            raise ValueError(f"splits of a {self.kind} source are {kind}")
        if self.hub is not None and self.hub.pickled:
            raise ValueError("a data set has no pickled weights")
        return self


class ClassifierConfig(Section):
    """A convolutional classifier, trained from random weights on the images of a run, by SGD with Nesterov momentum.

    The learning rate rises over a tenth of the steps and falls as a cosine. Which images it is trained on, and its
    seed, are axes of a run.
    """

    architecture: Annotated[str, AfterValidator(check_architecture)]
    """`resnet18`, `resnet34`, `resnet50` or `densenet121`, with a stem for small images: a 3×3 convolution, no
    pooling"""
    width: Positive | None = None
    """channels of the first stage (64), growth rate of a DenseNet (32); the published network's if not given"""
    epochs: Positive
    """passes over the training images"""
    batch_size: Positive = 128
    """images per step; those that do not fill a batch are left out of an epoch"""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """its peak"""
    weight_decay: NotNegative = 5e-4
    """of all weights"""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """of SGD"""
    epsilon: Annotated[float, Field(gt=0)] = 1e-5
    """of the batch norms, in training and after"""
    augmentation: Literal["none", "crop", "crop_flip"] = "none"
    """random shifts by up to an eighth of the side; mirror images as well"""

    @property
    def channels(self) -> int:
        """Of its first stage."""
        return self.width or ARCHITECTURES[self.architecture].width


class ClassifierAxes(Section):
    """What defines one run of a classifier, in the words of those of language models.

    It is pruned by magnitude alone: criteria that look at inputs are those of language models.
    """

    classifier: Name
    """of `classifiers`: what is trained"""
    images: Name
    """of `images`: what it is trained, calibrated (training images) and tested on"""
    seed: Seed = 0
    """of its weights, the order of training and the calibration images"""
    criterion: Annotated[Literal["magnitude", "random"], BeforeValidator(canonical_criterion)] = "magnitude"
    """score by which weights are pruned"""
    pattern: Annotated[str, BeforeValidator(canonical_pattern)] = "90% per matrix"
    """a layer is a matrix `[outputs, inputs × height × width]`; no structured pattern"""
    allocation: Annotated[str, BeforeValidator(canonical_allocation)] = "uniform"
    """over all convolutions and the head; see [Methods](#methods)"""
    calibration_images: Positive = 256
    """training images that backends see, without their labels"""
    batch_size: Positive = 128
    """of the cumulative recalibration"""
    backends: tuple[Backend, ...] = BACKENDS
    """what is done to the pruned network, each on a copy of its own, in one job; not multiplied out. See
    [The second paper](vision.md#backends)"""

    @field_validator("backends")
    @classmethod
    def _each_once(cls, names: tuple[Backend, ...]) -> tuple[Backend, ...]:
        if not names:
            raise ValueError("the list is empty")
        # in one order, so that the same backends are the same run
        return tuple(name for name in BACKENDS if name in names)


class VisionConfig(Config):
    """The config with the sections of the second paper."""

    images: dict[Name, ImagesConfig] = {}
    """image data sets, besides those of `workflow/references/images.yaml`; an entry here wins"""
    classifiers: dict[Name, ClassifierConfig] = {}
    """convolutional classifiers"""


EXTENSIONS.append(VisionConfig)
