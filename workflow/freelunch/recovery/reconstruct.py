"""Local reconstruction: train one window of the pruned network to give the dense network's activations.

``min_W  1/(T d) * sum_t || f(x_t; W * M) - y_t ||^2`` with dense inputs ``x``, dense targets ``y`` (paper, section on
local reconstruction; its flow "dense") and the mask ``M`` fixed. Master weights and the optimiser's state are float32,
products run in bfloat16 (float32 for float32 models). Dropout is off. What is validated is what is saved: weights
rounded to the model's dtype. The best state by validation loss is kept, and the initial one counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..activations import DenseStates, batches
from ..blocks import Halves, find_halves, matrices, part_parameters, run_part
from ..errors import FreelunchError
from ..streaming import Network
from ..windows import Window
from .schedule import batch_order, learning_rate, validation_steps

VALIDATION_TOKENS = 2048
"""Tokens per batch of a validation pass, which needs no room for gradients."""
MaskOf = Callable[[str], Tensor | None]


@dataclass(frozen=True)
class Training:
    """How every window of a run is trained. ``epochs`` passes in steps of ``batch_size`` sequences with AdamW."""

    epochs: int
    batch_size: int
    learning_rate: float
    warmup: float
    trains_norms: bool
    seed: int


@dataclass(frozen=True)
class WindowResult:
    """The best state of a window, and how training went.

    Attributes:
        tensors: trained tensors by full name, in the model's dtype, zero where pruned.
        losses: validation loss (mean squared error) at ``steps``; step 0 is the pruned window before training.
    """

    tensors: dict[str, Tensor]
    steps: list[int]
    losses: list[float]
    seconds: float

    @property
    def best(self) -> int:
        return min(range(len(self.losses)), key=self.losses.__getitem__)

    def record(self) -> dict[str, Any]:
        """What the manifest says of the window."""
        return {
            "validation_steps": self.steps,
            "losses": self.losses,
            "best_step": self.steps[self.best],
            "best_loss": self.losses[self.best],
            "steps": self.steps[-1],
            "seconds": round(self.seconds, 3),
        }


def reconstruct_window(
    network: Network, window: Window, states: dict[str, DenseStates], mask_of: MaskOf, training: Training
) -> WindowResult:
    """Train one window of ``network``, the pruned model, under the masks that ``mask_of`` gives by name.

    Args:
        states: dense states of the splits ``calibration`` and ``validation``.

    Raises:
        FreelunchError: an activation, a loss or a weight is NaN or infinite (names window and step), or a trained
            tensor is not zero where it is pruned.
    """
    started = time.perf_counter()
    halves = {block: _halves(network, block, states) for block in window.blocks if window.part(block) != "block"}
    pairs = {}
    for split, walk in states.items():
        walk.drop_before(2 * window.blocks[0])
        start, stop = halves.get(window.blocks[0]), halves.get(window.blocks[-1])
        pairs[split] = (walk.at(window.start, start), walk.at(window.stop, stop))
    with ExitStack() as loaded:
        blocks = {block: loaded.enter_context(network.block(block)) for block in window.blocks}
        trainer = _Trainer(network, window, blocks, halves, mask_of, training)
        steps, losses = trainer.fit(pairs["calibration"], pairs["validation"])
        return WindowResult(trainer.best_tensors(), steps, losses, time.perf_counter() - started)


def _halves(network: Network, block: int, states: dict[str, DenseStates]) -> Halves:
    hidden = states["calibration"].at(2 * block)[:1].to(network.device)
    with network.block(block) as module:
        return find_halves(module, hidden, network.calls(*hidden.shape[:2])[block])


class _Trainer:
    """One window's parameters in float32, their masks, and the loop that trains them."""

    def __init__(
        self, network: Network, window: Window, blocks: dict[int, nn.Module], halves: dict[int, Halves],
        mask_of: MaskOf, training: Training,
    ) -> None:  # fmt: skip
        self.network, self.window, self.blocks, self.halves, self.training = network, window, blocks, halves, training
        self.parameters: dict[str, nn.Parameter] = {}
        self.masks: dict[str, Tensor] = {}
        for index, block in blocks.items():
            weights = {f"{name}.weight" for name in matrices(block)}
            inside = set(part_parameters(block, window.part(index), halves.get(index)))
            for name, parameter in block.named_parameters():
                if name not in inside:
                    if parameter.ndim < 2:  # the norm before attention runs, to no effect, in front of the MLP half
                        parameter.data = parameter.data.float()
                    continue
                parameter.data = parameter.data.to(torch.float32, copy=True)
                full = f"{network.block_name(index)}.{name}"
                if (mask := mask_of(full)) is not None:
                    self.masks[full] = mask.to(network.device)
                    parameter.data.mul_(self.masks[full])
                if name in weights or training.trains_norms:
                    parameter.requires_grad_(True)
                    self.parameters[full] = parameter
        self._best_loss = float("inf")
        self._best: dict[str, Tensor] = {}

    def fit(self, train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor]) -> tuple[list[int], list[float]]:
        """Train; returns the steps at which it was validated, and the losses there."""
        count, training = train[0].shape[0], self.training
        order = batch_order(count, training.batch_size, training.epochs, training.seed, self.window.index)
        total = len(order)
        checkpoints = validation_steps(total, training.epochs)
        optimizer = torch.optim.AdamW(self.parameters.values(), lr=training.learning_rate, weight_decay=0, fused=True)
        losses = [self._validate(validation, 0)]
        progress = tqdm(order, desc=f"window {self.window.name}", unit="step", leave=False, delay=10, mininterval=5)
        for step, rows in enumerate(progress, start=1):
            loss = self._loss(train[0][rows], train[1][rows])
            if not bool(loss.isfinite()):
                raise FreelunchError(f"window {self.window.name}, step {step}: the training loss is {loss.item()}")
            loss.backward()
            for name, mask in self.masks.items():
                gradient = self.parameters[name].grad
                assert gradient is not None
                gradient.mul_(mask)  # pruned weights start at zero and, without a gradient, stay there
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(training.learning_rate, step, total, training.warmup)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step in checkpoints:
                losses.append(self._validate(validation, step))
        return [0, *checkpoints], losses

    def best_tensors(self) -> dict[str, Tensor]:
        """The best state, after checking that nothing pruned has come back."""
        for name, mask in self.masks.items():
            revived = int((self._best[name] != 0).logical_and(~mask).sum())
            if revived:
                raise FreelunchError(f"window {self.window.name}: {revived} pruned weights of {name} are not zero")
        return {name: tensor.cpu() for name, tensor in self._best.items()}

    def _run(self, hidden: Tensor) -> Tensor:
        calls = self.network.calls(*hidden.shape[:2])
        for index, block in self.blocks.items():
            hidden = run_part(block, self.window.part(index), self.halves.get(index), hidden, calls[index])
        return hidden

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        device = self.network.device
        half = self.network.dtype != torch.float32
        # inputs in float32: autocast rounds what enters a product, but the residual stream keeps its precision
        with torch.autocast(device.type, torch.bfloat16) if half else nullcontext():
            output = self._run(inputs.to(device, torch.float32))
        return nn.functional.mse_loss(output.float(), targets.to(device, torch.float32))

    @torch.no_grad()
    def _validate(self, validation: tuple[Tensor, Tensor], step: int) -> float:
        """Validation loss with the weights rounded as they would be saved; keeps them if it is the lowest so far."""
        rounded = {name: parameter.detach().to(self.network.dtype, copy=True) for name, parameter in self._items()}
        masters = {name: parameter.data for name, parameter in self._items()}
        for name, parameter in self._items():
            parameter.data = rounded[name].float()
        inputs, targets = validation
        total = 0.0
        for rows in batches(inputs.shape[0], max(1, VALIDATION_TOKENS // inputs.shape[1])):
            total += self._loss(inputs[rows], targets[rows]).item() * (rows.stop - rows.start)
        for name, parameter in self._items():
            parameter.data = masters[name]
        loss = total / inputs.shape[0]
        if not loss < float("inf"):
            raise FreelunchError(f"window {self.window.name}, step {step}: the validation loss is {loss}")
        if loss < self._best_loss:
            self._best_loss, self._best = loss, rounded
        return loss

    def _items(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.parameters.items())
