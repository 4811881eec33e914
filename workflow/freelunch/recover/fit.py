"""How a training went, what came of it, and the state by which an interrupted one goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor


@dataclass
class Fit:
    """How a training went, and the best state it saw.

    Attributes:
        best: the best state, merged; ``adapters``, the low-rank factors that it was merged from.
        losses: validation loss at ``steps``; step 0 is before training.
        rate: peak learning rate, and ``tried``, the losses of others after short trials.
        unmerged: validation loss at the last step as training computed it, where that is not what is saved.
        sequences: passes over single sequences, and ``searched``, those of short trials.
    """

    rate: float
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    adapters: dict[str, Tensor] = field(default_factory=dict)
    unmerged: float | None = None
    tried: dict[float, float] = field(default_factory=dict)
    sequences: int = 0
    searched: int = 0
    seconds: float = 0.0

    @property
    def best_at(self) -> int:
        return min(range(len(self.losses)), key=self.losses.__getitem__)


@dataclass(frozen=True)
class Trained:
    """The best state of what was trained, and how that went.

    Attributes:
        tensors: trained tensors by full name, in the model's dtype, zero where pruned.
        trained: how many numbers were trained.
    """

    tensors: dict[str, Tensor]
    fit: Fit
    trained: int

    def record(self) -> dict[str, Any]:
        """What the manifest says of it."""
        fit = self.fit
        return {
            "validation_steps": fit.steps,
            "losses": fit.losses,
            "best_step": fit.steps[fit.best_at],
            "best_loss": fit.losses[fit.best_at],
            "unmerged_loss": fit.unmerged,
            "chosen_rate": fit.rate if fit.tried else None,
            "tried": [[rate, loss if loss < float("inf") else None] for rate, loss in fit.tried.items()],
            "steps": fit.steps[-1],
            "sequences": fit.sequences,
            "searched": fit.searched,
            "trainable_parameters": self.trained,
            "seconds": round(fit.seconds, 3),
        }


def totals(records: Sequence[dict[str, Any]], length: int) -> dict[str, int]:
    """What training came to over all windows: tokens per window (those that trained), and numbers trained in all.

    Args:
        records: of :meth:`Trained.record`.
        length: tokens per sequence.
    """
    trained = [record for record in records if record["sequences"]] or [{"sequences": 0, "searched": 0}]
    return {
        "training_tokens": round(length * sum(record["sequences"] for record in trained) / len(trained)),
        "search_tokens": round(length * sum(record["searched"] for record in trained) / len(trained)),
        "trainable_parameters": sum(record["trainable_parameters"] for record in records),
    }


State = tuple[dict[str, Tensor], dict[str, Any]]


class Keeper(Protocol):
    """Where the state of an interrupted training waits."""

    def load(self) -> State | None:
        """What was saved last, if anything was."""
        ...

    def due(self) -> bool:
        """Whether it is long ago that it was saved."""
        ...

    def save(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Replace it."""
        ...


def state_of(step: int, found: Fit, parameters: dict[str, Any], optimizer: Any) -> State:
    """All that a training goes on from, as tensors and as JSON."""
    tensors = {f"parameter {name}": each.detach() for name, each in parameters.items()}
    for name, each in parameters.items():
        tensors |= {f"optimizer {name} {key}": value for key, value in optimizer.state[each].items()}
    tensors |= {f"best {name}": value for name, value in found.best.items()}
    tensors |= {f"adapter {name}": value for name, value in found.adapters.items()}
    return tensors, {
        "step": step,
        "rate": found.rate,
        "tried": list(found.tried.items()),
        "unmerged": found.unmerged,
        "sequences": found.sequences,
        "searched": found.searched,
        "steps": found.steps,
        "losses": found.losses,
    }


def restore(
    found: Fit, parameters: dict[str, Any], optimizer: Any, tensors: dict[str, Tensor], about: dict[str, Any]
) -> None:
    found.unmerged = about["unmerged"]
    found.sequences, found.searched = about["sequences"], about["searched"]
    found.steps, found.losses = list(about["steps"]), list(about["losses"])
    device = next(iter(parameters.values())).device
    for key, value in tensors.items():
        kind, name, *rest = key.split(" ")
        if kind == "parameter":
            parameters[name].data.copy_(value)
        elif kind == "optimizer":
            # torch keeps the count of steps of a fused optimiser where the parameter is
            optimizer.state[parameters[name]][rest[0]] = value.to(device)
        else:
            {"best": found.best, "adapter": found.adapters}[kind][name] = value.to(device)
