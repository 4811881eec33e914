"""The training loop that all recoveries share: batches, optimiser, schedule, validation, and the best state.

Master weights and the optimiser's state are float32. What is validated is what is saved: merged weights, rounded to
the model's dtype. The best state by validation loss is kept, and the initial one counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from tqdm import tqdm

from freelunch.engine.states import batches
from freelunch.engine.transfers import ahead
from freelunch.errors import FreelunchError, naming
from freelunch.recover.schedule import best_rate, learning_rate, search_rate, trial_steps, validation_steps
from freelunch.recover.trainable import Trainable

if TYPE_CHECKING:
    from freelunch.plan.specs import Training

MOMENTUM = 0.9
_VARIANTS = 32
"""Of a compiled module: batches of training and validation, the last of either, with gradients of its input or not."""
State = tuple[dict[str, Tensor], dict[str, Any]]
"""All that an interrupted training goes on from, as tensors and as JSON."""


@dataclass
class Fit:
    """How a training went, and the best state it saw."""

    rate: float  # at its peak
    steps: list[int] = field(default_factory=list)  # of validations; step 0 is before training
    losses: list[float] = field(default_factory=list)  # at these steps
    best: dict[str, Tensor] = field(default_factory=dict)  # the best state, merged
    adapters: dict[str, Tensor] = field(default_factory=dict)  # the low-rank factors that it was merged from
    unmerged: float | None = None  # loss at the last step as training computed it, where that is not what is saved
    tried: dict[float, float] = field(default_factory=dict)  # losses of rates after short trials
    sequences: int = 0  # passes over single sequences
    searched: int = 0  # those of short trials
    seconds: float = 0.0

    @property
    def best_at(self) -> int:
        """Index of the first lowest loss."""
        return min(range(len(self.losses)), key=self.losses.__getitem__)

    def state(self, step: int, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> State:
        """What an interrupted training goes on from after a step."""
        tensors: dict[str, Tensor] = {f"parameter {name}": each.detach() for name, each in parameters.items()}
        for name, each in parameters.items():
            tensors |= {f"optimizer {name} {key}": value for key, value in optimizer.state[each].items()}
        tensors |= {f"best {name}": value for name, value in self.best.items()}
        tensors |= {f"adapter {name}": value for name, value in self.adapters.items()}
        kept = ("rate", "unmerged", "sequences", "searched", "steps", "losses")
        return tensors, {"step": step, "tried": list(self.tried.items()), **{key: getattr(self, key) for key in kept}}

    def restore(self, state: State, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
        """Go back to a :meth:`state`; its step."""
        tensors, about = state
        self.unmerged, self.sequences, self.searched = about["unmerged"], about["sequences"], about["searched"]
        self.steps, self.losses = list(about["steps"]), list(about["losses"])
        device = next(iter(parameters.values())).device
        for key, value in tensors.items():
            kind, name, *rest = key.split(" ")
            if kind == "parameter":
                parameters[name].data.copy_(value)
            elif kind == "optimizer":
                # torch keeps the count of steps of a fused optimiser where the parameter is
                optimizer.state[parameters[name]][rest[0]] = value.to(device)
            else:
                {"best": self.best, "adapter": self.adapters}[kind][name] = value.to(device)
        return int(about["step"])


@dataclass(frozen=True)
class Trained:
    """The best state of what was trained, and how that went."""

    tensors: dict[str, Tensor]  # by full name, in the model's dtype, zero where pruned
    fit: Fit
    trained: int  # how many numbers

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

    ``records`` are those of :meth:`Trained.record`, ``length`` the tokens of a sequence.
    """
    trained = [record for record in records if record["sequences"]] or [{"sequences": 0, "searched": 0}]
    return {
        "training_tokens": round(length * sum(record["sequences"] for record in trained) / len(trained)),
        "search_tokens": round(length * sum(record["searched"] for record in trained) / len(trained)),
        "trainable_parameters": sum(record["trainable_parameters"] for record in records),
    }


class Keeper(Protocol):
    """Where the state of an interrupted training waits."""

    def load(self) -> State | None:
        """What was saved last, if anything was."""

    def due(self) -> bool:
        """Whether it is long ago that it was saved."""

    def save(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Replace it."""


class Objective:
    """What is minimised over ``sequences`` ``[count, length, ...]`` of both splits; validated ``tokens`` at a time."""

    def __init__(self, sequences: Mapping[str, Tensor], tokens: int) -> None:
        self._sequences, self._tokens_at_a_time = sequences, tokens

    def count(self, split: str) -> int:
        """Sequences of a split."""
        return len(self._sequences[split])

    def validation_batch(self) -> int:
        """Sequences per batch of a validation pass."""
        return max(1, self._tokens_at_a_time // self._sequences["validation"].shape[1])

    def load(self, split: str, rows: Tensor) -> Any:
        """A batch of sequences, on the device; called in a thread of its own, ahead of use."""
        raise NotImplementedError

    def loss(self, batch: Any) -> Tensor:
        """Mean loss over a batch."""
        raise NotImplementedError


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

    def train(self) -> Trained:
        """:meth:`fit`, and the best state on the CPU."""
        count, fit = self._trainable.count, self.fit()
        return Trained({name: tensor.cpu() for name, tensor in fit.best.items()}, fit, count)

    def fit(self) -> Fit:
        """Train.

        Raises:
            FreelunchError: a loss is NaN or infinite (names the step), or a trained tensor is not zero where pruned.
        """
        started = time.perf_counter()
        fit = Fit(0.0)
        if not self._trainable.parameters:
            self._validate(fit, 0)
            return fit
        kept = self._keeper.load() if self._keeper else None
        if kept is not None:
            fit.rate, fit.tried = kept[1]["rate"], dict(kept[1]["tried"])
        elif self._training.learning_rate == "auto":
            fit.tried = self._search(fit)
            fit.rate = best_rate(fit.tried)
        else:
            fit.rate = self._training.learning_rate
        self._run(fit, self._order, kept)
        with naming(self._where):
            self._trainable.check(fit.best)
        fit.seconds += time.perf_counter() - started
        return fit

    def _search(self, fit: Fit) -> dict[float, float]:
        initial = {name: each.detach().clone() for name, each in self._trainable.parameters.items()}
        order = self._order[: trial_steps(len(self._order))]

        def trial(rate: float) -> float:
            tried = Fit(rate)
            try:
                self._run(tried, order, trial=True)
                return tried.losses[-1]
            except FreelunchError:
                return float("inf")  # diverged
            finally:
                fit.searched += tried.sequences
                for name, parameter in self._trainable.parameters.items():
                    parameter.data.copy_(initial[name])
                    parameter.grad = None

        return search_rate(trial)

    def _run(self, fit: Fit, order: list[Tensor], kept: State | None = None, trial: bool = False) -> None:
        training, parameters, total = self._training, self._trainable.parameters, len(order)
        optimizer = self._optimizer(fit.rate)
        keeper = None if trial else self._keeper
        done = 0
        if kept is not None:
            done = fit.restore(kept, parameters, optimizer)
        elif not trial:
            self._validate(fit, 0)
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
                group["lr"] = learning_rate(fit.rate, step, total, training.warmup, training.schedule)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            # looked at once all of the step is under way: an accelerator is waited for once
            for value in torch.stack(losses).tolist():
                if not math.isfinite(value):
                    raise FreelunchError(f"{self._where}, step {step}: the training loss is {value}")
            steps.set_postfix(loss=f"{value:.4g}", refresh=False)
            fit.sequences += len(order[step - 1])
            if step in checkpoints:
                self._validate(fit, step)
                if not (self._trainable.exact or trial):
                    fit.unmerged = self._mean_loss()
                if training.patience and len(fit.losses) - 1 - fit.best_at >= training.patience:
                    break
            if keeper and step < total and (step in checkpoints or keeper.due()):
                keeper.save(*fit.state(step, parameters, optimizer))

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
    def _validate(self, fit: Fit, step: int) -> None:
        state = self._trainable.state()
        with self._trainable.saved(state):
            loss = self._mean_loss()
        if not loss < float("inf"):
            raise FreelunchError(f"{self._where}, step {step}: the validation loss is {loss}")
        if not fit.losses or loss < min(fit.losses):
            fit.best, fit.adapters = state, self._trainable.adapters()
        fit.steps.append(step)
        fit.losses.append(loss)

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


@contextmanager
def compiled(blocks: Iterable[nn.Module], wanted: bool) -> Iterator[None]:
    """Compile what the children of blocks do, while the context is open; ``wanted`` is ``execution.compile``.

    The children, not the blocks: halves are cut between them, by hooks and stubs that compiled code would not look at.
    Blocks of the same kind share the code, so that it is made once for every shape of a batch. Products and attention
    are those of torch in any case; compiled are the chains between them. Left as they are: children with low-rank
    weights, since each such layer is of a class of its own and would be compiled for each block again, and layers of
    torch itself, of which there is nothing to gain.

    Raises:
        FreelunchError: inside, torch could not compile.
    """
    if not wanted:
        yield
        return
    children = dict.fromkeys(child for block in blocks for child in block.children())
    with ExitStack() as restored:
        restored.enter_context(torch._dynamo.config.patch(recompile_limit=_VARIANTS))
        for child in children:
            own = not type(child).__module__.startswith("torch.nn.")
            if own and not any(parametrize.is_parametrized(module) for module in child.modules()):
                child.forward = torch.compile(child.forward, dynamic=False)
                restored.callback(delattr, child, "forward")
        try:
            yield
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise FreelunchError(f"execution.compile: torch cannot compile here ({reason}); set it to false") from error
