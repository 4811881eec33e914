"""What the config says of image data sets, classifiers and their runs. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

# absolute: provenance follows relative imports, and the code of a method counts only where it is run
from freelunch.method import canonical_allocation, canonical_criterion, canonical_pattern

from ..plan.section import Hub, Name, Positive, Section, Seed, Wheel
from .architectures import ARCHITECTURES, check_architecture

SOURCES = ("wheel", "hub", "path")
COLOURS = {"wheel": 1, "hub": 3, "path": 3}
"""Channels by kind of source: tables in wheels are grey."""
Part = Literal["train", "test"]
PARTS: tuple[Part, ...] = get_args(Part)

Repair = Literal["channel", "layer", "shrink"]
"""Those of ``recovery.repair``, where torch is imported."""
Backend = Literal[
    "none", "recalibrate_cumulative", "recalibrate", "recalibrate_epsilon", "channel", "layer", "shrink", "reconstruct",
]  # fmt: skip
BACKENDS: tuple[Backend, ...] = get_args(Backend)
"""Every backend but ``none`` ends with a recalibration: layer by layer, except for the cumulative one.

``recalibrate_epsilon`` is the control that tells whether a repair does more than escape the epsilon of batch norms:
the pruned network gets a much smaller one, and gains with which the dense network computes what it did, and is
recalibrated.
"""


class ImagesConfig(Section):
    """A data set of images with labels: a table in a wheel, a data set of the hub, or folders on disk.

    ``splits`` maps train and test to numbers of images (a table's, drawn at random, so that no image is in both) or to
    names of the source's own splits (of the hub) or subfolders, in which every folder is a class (``path``).
    """

    wheel: Wheel | None = None
    """A gzipped CSV of square grey images: a row has the pixels, 0 to 255, and then the label."""
    hub: Hub | None = None
    path: str | None = None
    splits: dict[Part, Positive | Annotated[str, Field(min_length=1)]]
    size: Positive
    """Side of the square that an image becomes, in pixels."""
    classes: Annotated[int, Field(gt=1)]
    image: str = "image"
    """Field of a hub record."""
    label: str = "label"
    max_images: Positive | None = None
    """Of each split, the first that there are."""
    seed: Seed = 0
    """Of the drawing."""
    licence: str = ""

    @property
    def kind(self) -> str:
        """``wheel``, ``hub`` or ``path``."""
        return next(kind for kind in SOURCES if getattr(self, kind) is not None)

    @property
    def channels(self) -> int:
        return COLOURS[self.kind]

    @model_validator(mode="after")
    def _complete(self) -> ImagesConfig:
        given = [kind for kind in SOURCES if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(SOURCES)}; found {', '.join(given) or 'none'}")
        if set(self.splits) != set(PARTS):
            raise ValueError("splits are train and test")
        wanted = int if self.wheel is not None else str
        if any(not isinstance(value, wanted) for value in self.splits.values()):
            kind = "numbers of images" if self.wheel is not None else "names"
            raise ValueError(f"splits of a {given[0]} source are {kind}")
        if self.hub is not None and self.hub.pickled:
            raise ValueError("a data set has no pickled weights")
        return self


class ClassifierConfig(Section):
    """A convolutional classifier, trained from random weights on the images of a run, by SGD with Nesterov momentum.

    The learning rate rises over a tenth of the steps and falls as a cosine.
    """

    architecture: Annotated[str, AfterValidator(check_architecture)]
    """One of :data:`vision.architectures.ARCHITECTURES`."""
    width: Positive | None = None
    """Channels of the first stage (DenseNet: growth rate); the published network's if not given."""
    epochs: Positive
    batch_size: Positive = 128
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    epsilon: Annotated[float, Field(gt=0)] = 1e-5
    """Of the batch norms, in training and after; torch's default."""
    augmentation: Literal["none", "crop", "crop_flip"] = "none"
    """Random crops of images padded by an eighth of their side, and mirror images as well."""

    @property
    def channels(self) -> int:
        """Of its first stage."""
        return self.width or ARCHITECTURES[self.architecture].width


class ClassifierAxes(Section):
    """What defines one run of a classifier, in the words of ``config.Axes``. It is pruned by magnitude alone:
    criteria that look at inputs are those of language models."""

    classifier: Name
    images: Name
    """The data set that it is trained, calibrated and tested on."""
    seed: Seed = 0
    """Of its weights, the order of training and the calibration images."""
    criterion: Annotated[Literal["magnitude", "random"], BeforeValidator(canonical_criterion)] = "magnitude"
    pattern: Annotated[str, BeforeValidator(canonical_pattern)] = "90% per matrix"
    """Each layer is one matrix, ``[outputs, inputs * height * width]``."""
    allocation: Annotated[str, BeforeValidator(canonical_allocation)] = "uniform"
    calibration_images: Positive = 256
    """Training images, without their labels, that backends see."""
    batch_size: Positive = 128
    """Of the cumulative recalibration."""
    backends: tuple[Backend, ...] = BACKENDS
    """What is done to the pruned network, each on a copy of its own, and measured: no axis that is multiplied out."""

    @field_validator("backends")
    @classmethod
    def _each_once(cls, names: tuple[Backend, ...]) -> tuple[Backend, ...]:
        if not names:
            raise ValueError("the list is empty")
        # in one order, so that the same backends are the same run
        return tuple(name for name in BACKENDS if name in names)


CLASSIFIER_AXES = tuple(ClassifierAxes.model_fields)
