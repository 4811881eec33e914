"""The training loop that all recoveries share: batches, optimiser, schedule, validation, and the best state.

Master weights and the optimiser's state are float32. What is validated is what is saved: merged weights, rounded to
the model's dtype. The best state by validation loss is kept, and the initial one counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from freelunch.engine.states import batches
from freelunch.engine.transfers import ahead
from freelunch.errors import FreelunchError, naming
from freelunch.plan.specs import Training
from freelunch.recover import rates
from freelunch.recover.fit import Fit, Keeper, State, restore, state_of
from freelunch.recover.schedule import learning_rate, validation_steps
from freelunch.recover.trainable import Trainable

MOMENTUM = 0.9


class Objective(Protocol):
    """What is minimised. ``load`` runs in a thread of its own, ahead of use."""

    def count(self, split: str) -> int:
        """Sequences of a split."""
        ...

    def load(self, split: str, rows: Tensor) -> Any:
        """A batch of sequences, on the device."""
        ...

    def loss(self, batch: Any) -> Tensor:
        """Mean loss over a batch."""
        ...

    def validation_batch(self) -> int:
        """Sequences per batch of a validation pass."""
        ...


class Trainer:
    """Trains one set of parameters.

    Args:
        where: what is trained, for messages.
        index: of the window, which with the seed gives the order of batches.
        keeper: lets a training go on where it was killed.
        weight_decay: of AdamW; vectors, such as norms and biases, have none.
    """

    def __init__(
        self, trainable: Trainable, objective: Objective, training: Training, where: str, index: int,
        keeper: Keeper | None = None, weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        self._trainable, self._objective, self._training = trainable, objective, training
        self._where, self._index, self._keeper = where, index, keeper
        self._weight_decay = weight_decay
        self._order = batch_order(
            objective.count("calibration"), training.batch_size, training.epochs, training.seed, index
        )

    def fit(self) -> Fit:
        """Train.

        Raises:
            FreelunchError: a loss is NaN or infinite (names the step), or a trained tensor is not zero where pruned.
        """
        started = time.perf_counter()
        found = Fit(0.0)
        if not self._trainable.parameters:
            self._validate(found, 0)
            return found
        kept = self._keeper.load() if self._keeper else None
        if kept is not None:
            found.rate, found.tried = kept[1]["rate"], dict(kept[1]["tried"])
        elif self._training.learning_rate == "auto":
            found.tried = self._search(found)
            found.rate = rates.lowest(found.tried)
        else:
            found.rate = self._training.learning_rate
        self._run(found, self._order, kept)
        with naming(self._where):
            self._trainable.check(found.best)
        found.seconds += time.perf_counter() - started
        return found

    def _search(self, found: Fit) -> dict[float, float]:
        initial = {name: each.detach().clone() for name, each in self._trainable.parameters.items()}
        order = self._order[: rates.trial_steps(len(self._order))]

        def trial(rate: float) -> float:
            tried = Fit(rate)
            try:
                self._run(tried, order, trial=True)
                return tried.losses[-1]
            except FreelunchError:
                return float("inf")  # diverged
            finally:
                found.searched += tried.sequences
                for name, parameter in self._trainable.parameters.items():
                    parameter.data.copy_(initial[name])
                    parameter.grad = None

        return rates.search(trial)

    def _run(self, found: Fit, order: list[Tensor], kept: State | None = None, trial: bool = False) -> None:
        training, parameters, total = self._training, self._trainable.parameters, len(order)
        optimizer = self._optimizer(found.rate)
        keeper = None if trial else self._keeper
        if kept is not None:
            restore(found, parameters, optimizer, *kept)
        elif not trial:
            self._validate(found, 0)
        done = kept[1]["step"] if kept else 0
        checkpoints = {total} if trial else set(validation_steps(total, training.epochs))
        steps = tqdm(
            range(done + 1, total + 1), desc=self._where, unit="step", initial=done, total=total,
            leave=False, delay=10, mininterval=5,
        )  # fmt: skip
        loaded = self._ahead(order[done:])
        for step in steps:
            losses = []
            for batch, share in next(loaded):
                loss = self._objective.loss(batch)
                (loss * share).backward()
                losses.append(loss.detach())
            self._trainable.mask_gradients()
            if training.clip:
                torch.nn.utils.clip_grad_norm_(parameters.values(), training.clip)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(found.rate, step, total, training.warmup, training.schedule)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            # looked at once all of the step is under way: an accelerator is waited for once
            for value in torch.stack(losses).tolist():
                if not math.isfinite(value):
                    raise FreelunchError(f"{self._where}, step {step}: the training loss is {value}")
            steps.set_postfix(loss=f"{value:.4g}", refresh=False)
            found.sequences += len(order[step - 1])
            if step in checkpoints:
                self._validate(found, step)
                if not (self._trainable.exact or trial):
                    found.unmerged = self._mean_loss()
                if training.patience and len(found.losses) - 1 - found.best_at >= training.patience:
                    break
            if keeper and step < total and (step in checkpoints or keeper.due()):
                keeper.save(*state_of(step, found, parameters, optimizer))

    def _optimizer(self, rate: float) -> torch.optim.Optimizer:
        parameters = list(self._trainable.parameters.values())
        if self._training.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=rate, momentum=MOMENTUM, fused=True)
        groups = [
            {"params": [each for each in parameters if each.ndim > 1], "weight_decay": self._weight_decay},
            {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([group for group in groups if group["params"]], lr=rate, fused=True)

    def _ahead(self, order: list[Tensor]) -> Iterator[list[tuple[Any, float]]]:
        """The parts of every step, each with its share of the step; the next step is read while one is trained."""
        parts = self._training.accumulation

        def load(rows: Tensor) -> list[tuple[Any, float]]:
            pieces = [piece for piece in rows.tensor_split(parts) if len(piece)]
            return [(self._objective.load("calibration", piece), len(piece) / len(rows)) for piece in pieces]

        yield from ahead(load, order)

    @torch.no_grad()
    def _validate(self, found: Fit, step: int) -> None:
        state = self._trainable.state()
        with self._trainable.saved(state):
            loss = self._mean_loss()
        if not loss < float("inf"):
            raise FreelunchError(f"{self._where}, step {step}: the validation loss is {loss}")
        if not found.losses or loss < min(found.losses):
            found.best, found.adapters = state, self._trainable.adapters()
        found.steps.append(step)
        found.losses.append(loss)

    @torch.no_grad()
    def _mean_loss(self) -> float:
        objective = self._objective
        count = objective.count("validation")
        order = [torch.arange(rows.start, rows.stop) for rows in batches(count, objective.validation_batch())]
        loaded = ahead(lambda rows: objective.load("validation", rows), order)
        return sum(objective.loss(batch).item() * len(rows) for rows, batch in zip(order, loaded, strict=True)) / count


def batch_order(count: int, batch_size: int, epochs: int, seed: int, window: int) -> list[Tensor]:
    """Indices of the sequences of every step: each epoch a fresh permutation, the remainder kept as a smaller batch.

    The order depends on the seed and the window alone, so windows may be trained in any order, in any process.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + window)
    order: list[Tensor] = []
    for _ in range(epochs):
        order.extend(torch.randperm(count, generator=generator).split(batch_size))
    return order
