"""Local reconstruction: train one window of the pruned network to give the dense network's activations.

``min_W  1/(T d) * sum_t || f(x_t; W * M) - y_t ||^2`` with inputs ``x`` and targets ``y`` by the flow, and the mask
``M`` fixed (paper, section on local reconstruction). Products run in bfloat16 (float32 for float32 models). Dropout is
off.

Windows of one matrix can be solved for instead, the best that any method can do matrix by matrix: ``min_V ||X W^T - X
(M * V)^T||^2`` has a closed form per row, from the Gram matrix of the dense inputs. With biases it is the same with
centred inputs, and the bias makes up for the mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from freelunch.engine.blocks import Halves, part_parameters, run_part, run_until
from freelunch.engine.states import batches
from freelunch.engine.streaming import Network
from freelunch.engine.transfers import Sent, Uploads
from freelunch.errors import FreelunchError, naming
from freelunch.pruning.hessian import masked_least_squares, solvable
from freelunch.pruning.matrix import Statistics
from freelunch.recover.flows import DenseFlow, Pairs
from freelunch.recover.losses import LOSSES
from freelunch.recover.parametrizations import parse_parametrization
from freelunch.recover.schedule import VALIDATION_TOKENS
from freelunch.recover.trainable import MaskOf, Trainable
from freelunch.recover.training import Fit, Objective, Trained, Trainer, compiled
from freelunch.recover.windows import Window

if TYPE_CHECKING:
    from freelunch.plan.specs import Training

DAMPING = 1e-6
"""Share of the mean diagonal that is added to it: no more than float32 needs to factorise most Gram matrices."""


def reconstruct_window(
    flow: DenseFlow, window: Window, mask_of: MaskOf, training: Training, compile_: bool = False
) -> Trained:
    """Train one window of ``flow.student``, the pruned model, under the masks that ``mask_of`` gives by name.

    Args:
        compile_: whether what is trained is compiled; windows of matrices are not.

    Raises:
        FreelunchError: there is nothing to train, an activation, a loss or a weight is NaN or infinite (names window
            and step), or a trained tensor is not zero where it is pruned.
    """
    started = time.perf_counter()
    network = flow.student
    pairs = flow.pairs(window)
    halves = {block: cut for block in window.blocks if (cut := flow.cut(window, block))}
    where = f"window {window.name}"
    with ExitStack() as loaded:
        blocks = {block: loaded.enter_context(network.block(block)) for block in window.blocks}
        parts = [(network.block_name(i), block, _inside(window, i, block, halves)) for i, block in blocks.items()]
        with naming(where):
            trainable = Trainable(parts, mask_of, training, network.dtype)
        loaded.callback(trainable.close)
        objective = _Matching(network, window, blocks, halves, pairs, training)
        if len(window.matrices) > 1:
            _check_reach(trainable, objective, where)
        # of a window of matrices there is nothing to compile but the product; and where it ends is for a hook to say
        loaded.enter_context(compiled(blocks.values(), compile_ and not window.matrices))
        trained = Trainer(trainable, objective, training, where, window.index).train()
    trained.fit.seconds = time.perf_counter() - started  # with what it took to make inputs and targets
    return trained


def _check_reach(trainable: Trainable, objective: _Matching, where: str) -> None:
    """Refuse a window whose first matrix has no part in what its last one gives: attention and MLP in parallel."""
    if not trainable.parameters:
        return
    loss = objective.loss(objective.load("validation", torch.arange(1)))
    names = list(trainable.parameters)
    gradients = torch.autograd.grad(loss, list(trainable.parameters.values()), allow_unused=True)
    unused = [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]
    if unused:
        raise FreelunchError(f"{where}: {unused[0]} has no part in what the up projection gives; is its attention "
                             "beside the MLP? use window matrix or block")  # fmt: skip


def _inside(window: Window, index: int, block: nn.Module, halves: dict[int, Halves]) -> set[str]:
    """Names of a block's parameters that lie in the window."""
    if window.matrices:
        return {f"{name}.{kind}" for name in window.matrices for kind in ("weight", "bias")}
    return set(part_parameters(block, window.part(index), halves.get(index)))


class _Matching(Objective):
    """The distance of what a window gives from its target."""

    def __init__(
        self, network: Network, window: Window, blocks: dict[int, nn.Module], halves: dict[int, Halves], pairs: Pairs,
        training: Training,
    ) -> None:  # fmt: skip
        if training.loss not in LOSSES:
            raise FreelunchError(f"{training.loss} is no loss of states")
        super().__init__({split: inputs for split, (inputs, _) in pairs.items()}, VALIDATION_TOKENS["reconstruct"])
        self._network, self._window, self._blocks, self._halves = network, window, blocks, halves
        self._pairs, self._loss = pairs, LOSSES[training.loss]
        self._uploads = Uploads(network.copies)

    def load(self, split: str, rows: Tensor) -> tuple[Sent, Sent]:
        # in float32: autocast rounds what enters a product, but the residual stream keeps its precision
        inputs, targets = (self._uploads.send(part, rows, torch.float32) for part in self._pairs[split])
        return inputs, targets

    def loss(self, batch: tuple[Sent, Sent]) -> Tensor:
        inputs, targets = (part.received() for part in batch)
        with self._network.autocast():
            output = self._run(inputs)
        return self._loss(output.float(), targets)

    def _run(self, hidden: Tensor) -> Tensor:
        window = self._window
        calls = self._network.calls(*hidden.shape[:2])
        if window.matrices:
            (index, block), last = next(iter(self._blocks.items())), window.matrices[-1]
            if len(window.matrices) > 1:
                return run_until(block, last, hidden, calls[index]).reshape(*hidden.shape[:2], -1)
            found: Tensor = block.get_submodule(last)(hidden)
            return found
        for index, block in self._blocks.items():
            hidden = run_part(block, window.part(index), self._halves.get(index), hidden, calls[index])
        return hidden


# --- in closed form --------------------------------------------------------------------------------------------------


def solve_window(
    flow: DenseFlow, window: Window, mask_of: MaskOf, training: Training, statistics_of: Callable[[str], Statistics]
) -> Trained:
    """The best weights of a window's matrix under its mask; the pruned ones if these do better on validation crops.

    Args:
        statistics_of: statistics of the dense inputs of a matrix, with their Gram matrix, by its full name.
    """
    started = time.perf_counter()
    pairs = {"validation": flow.pair("validation", window)}
    index, inner = window.blocks[0], window.matrices[0]
    name = f"{flow.student.block_name(index)}.{inner}"
    initial, dense = (_parameters(network, index, inner) for network in (flow.student, flow.dense))
    device = dense["weight"].device
    mask = mask_of(f"{name}.weight")
    mask = torch.ones_like(dense["weight"], dtype=torch.bool) if mask is None else mask.to(device)
    inputs = statistics_of(name)
    assert inputs.gram is not None
    parts = parse_parametrization(training.parametrization)
    if any(part.adds_biases for part in parts):
        initial.setdefault("bias", initial["weight"].new_zeros(len(mask)))
    fits_bias = "bias" in initial and any(part.biases for part in parts)
    gram, means = inputs.gram.to(device), inputs.means.to(device)
    if fits_bias:
        gram = gram - (inputs.tokens * torch.outer(means, means)).float()
    wanted, none = dense["weight"].float(), initial["weight"].new_zeros(len(mask), dtype=torch.float32)
    offset = dense.get("bias", none).float() - initial.get("bias", none).float()
    if not fits_bias and bool(offset.any()):
        # pruning changed a bias that stays as it is: as if a last input, always 1, had lost its weight in every row
        wanted, mask = torch.column_stack([wanted, offset]), torch.column_stack([mask, torch.zeros_like(mask[:, :1])])
        sums, ones = (inputs.tokens * means).float().unsqueeze(1), gram.new_full((1, 1), float(inputs.tokens))
        gram = torch.cat([torch.cat([gram, sums], 1), torch.cat([sums.T, ones], 1)])
    weight = masked_least_squares(wanted, mask, solvable(gram, DAMPING))[:, : dense["weight"].shape[1]]
    found = {"weight": weight}
    if fits_bias:
        missing = (dense["weight"].double() - weight.double()) @ means
        found["bias"] = dense.get("bias", none).float() + missing.float()
    rounded = {kind: tensor.to(flow.student.dtype) for kind, tensor in found.items()}
    losses = [_loss(state, pairs, device) for state in (initial, initial | rounded)]
    best = rounded if losses[1] < losses[0] else {kind: initial[kind] for kind in rounded}
    fit = Fit(0.0, [0, 1], losses, {f"{name}.{kind}": tensor for kind, tensor in best.items()})
    fit.seconds = time.perf_counter() - started
    trained = int(mask.sum()) + (len(initial["bias"]) if fits_bias else 0)
    return Trained({name: tensor.cpu() for name, tensor in fit.best.items()}, fit, trained)


def _parameters(network: Network, index: int, name: str) -> dict[str, Tensor]:
    with network.block(index) as block:
        return {kind: each.data.clone() for kind, each in block.get_submodule(name).named_parameters()}


def _loss(state: dict[str, Tensor], pairs: Pairs, device: torch.device) -> float:
    """Mean squared error on the validation crops."""
    inputs, targets = pairs["validation"]
    weight, bias = state["weight"].float(), state["bias"].float() if "bias" in state else None
    total = 0.0
    for rows in batches(len(inputs), 16):
        given = torch.nn.functional.linear(inputs[rows].to(device).float(), weight, bias)
        total += float((given - targets[rows].to(device).float()).square().mean()) * (rows.stop - rows.start)
    return total / len(inputs)
