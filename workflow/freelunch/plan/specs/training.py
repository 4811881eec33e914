"""How parameters are trained: a part of the specs of all stages that train."""

from __future__ import annotations

from typing import Literal

# absolute: provenance follows relative imports, and the code of a method counts only where it is run
from freelunch.parametrizations import parse_parametrization

from ..config import Axes, Loss, Schedule, Train
from ..section import Section


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


def training_of(train: Train) -> Training:
    """How a model is trained from random weights: all of its parameters."""
    same = {name: getattr(train, name) for name in Training.model_fields if name in Train.model_fields}
    return Training(parametrization="full + biases + norms", loss="cross_entropy", **same)
