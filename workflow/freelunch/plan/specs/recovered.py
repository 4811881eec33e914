"""Specs of recovered models: reconstructed, retrained, repaired."""

from __future__ import annotations

from typing import Literal

# absolute: provenance follows relative imports, and the code of a method counts only where it is run
from freelunch.methods import slug

from ..config import Flow
from .dense import CalibrationSpec, DenseSpec, GramsSpec, ModelSpec
from .pruned import PrunedSpec
from .spec import Spec
from .training import Training


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


class ReconstructedSpec(RecoveredSpec):
    """Weights of a pruned model after local reconstruction, window by window."""

    stage: Literal["reconstructed"] = "reconstructed"
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
        return f"{self.pruned.label}-{window}{flow}{_trained(self.training)}"

    @property
    def interleaved(self) -> bool:
        """Whether this stage prunes as it goes."""
        return self.pruned.prune_inputs == "recovered"

    @property
    def modules(self) -> list[str]:
        """Modules of the package that hold the methods it uses."""
        return [*self.training.modules, *(self.pruned.modules if self.interleaved else [])]

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


class ShardSpec(Spec):
    """Some of the windows of a reconstruction, trained in a job of their own. Counts for no other key."""

    stage: Literal["shards"] = "shards"
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
    def modules(self) -> list[str]:
        """Modules of the package that hold the methods it uses."""
        return self.reconstructed.modules

    @property
    def before(self) -> list[ShardSpec]:
        """The shards whose windows this one goes on from."""
        return [self.changed(shard=shard) for shard in range(self.shard if self.reconstructed.sequential else 0)]

    def upstream(self) -> list[Spec]:
        return [*self.reconstructed.upstream(), *self.before]


class RetrainedSpec(RecoveredSpec):
    """Weights of a pruned model that was trained as a whole on its outputs."""

    stage: Literal["retrained"] = "retrained"
    calibration: CalibrationSpec
    """The sequences that are trained on."""
    training: Training

    @property
    def modules(self) -> list[str]:
        """Modules of the package that hold the methods it uses."""
        return self.training.modules

    @property
    def label(self) -> str:
        return f"{self.pruned.label}-retrained-{self.training.loss}{_trained(self.training)}"

    @property
    def dense(self) -> DenseSpec | None:
        """The dense states that logits to distil from are made of."""
        return DenseSpec(calibration=self.calibration) if self.training.loss == "kl" else None

    def upstream(self) -> list[Spec]:
        return [self.base, self.pruned, self.calibration, *([self.dense] if self.dense else [])]


class RepairedSpec(RecoveredSpec):
    """Weights of a pruned model, scaled so that outputs vary as much as the dense model's."""

    stage: Literal["repaired"] = "repaired"
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


def _trained(training: Training) -> str:
    default = Training.model_fields["parametrization"].default
    return "" if training.parametrization == default else f"-{slug(training.parametrization)}"


OverlaySpec = PrunedSpec | ReconstructedSpec | RetrainedSpec | RepairedSpec
"""What can lie over a dense model."""
