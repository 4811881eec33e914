"""Specs of what is made of a network: its metrics, and a model of its own."""

from __future__ import annotations

from typing import Literal

# absolute: provenance follows relative imports, and the code of a method counts only where it is run
from freelunch.patterns import Structured

from ..config import EvaluationTask
from .dense import DataSpec, ModelSpec, QuestionsSpec
from .pruned import PrunedSpec
from .recovered import OverlaySpec
from .spec import Spec


class EvaluationSpec(Spec):
    """Metrics of one network: the dense model, a pruned one or a recovered one."""

    stage: Literal["evaluation"] = "evaluation"
    subject: ModelSpec | OverlaySpec
    data: tuple[DataSpec | QuestionsSpec, ...]
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
    def texts(self) -> dict[str, DataSpec]:
        """The data sets whose text is read, by name."""
        return {data.data: data for data in self.data if isinstance(data, DataSpec)}

    @property
    def questions(self) -> dict[str, QuestionsSpec]:
        """The questions that are asked, by the name of the data set they are about."""
        return {asked.data.data: asked for asked in self.data if isinstance(asked, QuestionsSpec)}

    @property
    def overlays(self) -> list[OverlaySpec]:
        """What lies over the dense model, in the order of application."""
        return [] if isinstance(self.subject, ModelSpec) else self.subject.overlays


class ExportSpec(Spec):
    """A pruned or recovered network as a Hugging Face directory."""

    stage: Literal["export"] = "export"
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
