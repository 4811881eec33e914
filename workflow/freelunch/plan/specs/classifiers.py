"""Specs of the second paper: images, classifiers trained on them, and what becomes of pruned ones."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

# absolute: provenance follows relative imports, and the code of a method counts only where it is run
from freelunch.method import Method, parse_method
from freelunch.methods import slug
from freelunch.vision.config import Backend, ClassifierConfig, ImagesConfig

from .spec import Spec


class ImagesSpec(Spec):
    """The images of a data set and their labels, in splits."""

    stage: Literal["images"] = "images"
    images: str
    source: ImagesConfig

    @property
    def label(self) -> str:
        return self.images


class ClassifierSpec(Spec):
    """A dense classifier, trained."""

    stage: Literal["classifiers"] = "classifiers"
    classifier: str
    recipe: ClassifierConfig
    images: ImagesSpec
    seed: int

    @property
    def label(self) -> str:
        return f"{self.model}-seed{self.seed}"

    @property
    def model(self) -> str:
        """What rows call it; seeds are told apart by their own column."""
        return f"{self.classifier}-{self.images.label}"

    def upstream(self) -> list[Spec]:
        return [self.images]


class SparseClassifierSpec(Spec):
    """Masks of a pruned classifier, and its accuracy after every backend, each from the same pruned network.

    One stage for all of them: a backend takes less time than a job does to start.
    """

    stage: Literal["sparse_classifiers"] = "sparse_classifiers"
    dense: ClassifierSpec
    criterion: str
    pattern: str
    allocation: str
    calibration_images: int
    batch_size: int
    backends: tuple[Backend, ...]

    @property
    def label(self) -> str:
        parts = [self.dense.label, slug(self.criterion), self.method.pattern.slug]
        return "-".join(parts + [slug(text) for text in (self.allocation,) if text != "uniform"])

    @cached_property
    def method(self) -> Method:
        """What the texts stand for."""
        return parse_method(self.criterion, self.pattern, self.allocation, "none")

    @property
    def modules(self) -> list[str]:
        """Modules of the package that hold the methods it uses."""
        return self.method.modules

    def upstream(self) -> list[Spec]:
        return [self.dense.images, self.dense]
