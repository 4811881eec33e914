"""Spec of a pruned model."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Literal

# absolute: provenance follows relative imports, and the code of a method counts only where it is run
from freelunch.method import Method, parse_method
from freelunch.methods import slug

from .dense import DenseSpec, GramsSpec, ModelSpec
from .spec import Spec

if TYPE_CHECKING:
    from .recovered import OverlaySpec


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
    def overlays(self) -> list[OverlaySpec]:
        """What lies over the dense model, in the order of application."""
        return [self]

    @property
    def modules(self) -> list[str]:
        """Modules of the package that hold the methods it uses."""
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
