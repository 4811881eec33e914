"""Local reconstruction: train one window of the pruned network to give the dense network's activations.

``min_W  1/(T d) * sum_t || f(x_t; W * M) - y_t ||^2`` with inputs ``x`` and targets ``y`` by the flow, and the mask
``M`` fixed (paper, section on local reconstruction). Products run in bfloat16 (float32 for float32 models). Dropout is
off.
"""

from __future__ import annotations

import time
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from freelunch.engine.blocks import Halves, part_parameters, run_part, run_until
from freelunch.engine.streaming import Network
from freelunch.engine.transfers import Sent, Uploads
from freelunch.errors import FreelunchError, naming
from freelunch.plan.specs import Training
from freelunch.recover.compiled import compiled
from freelunch.recover.fit import Trained
from freelunch.recover.flows import DenseFlow, Pairs
from freelunch.recover.losses import LOSSES
from freelunch.recover.schedule import VALIDATION_TOKENS
from freelunch.recover.trainable import MaskOf, Trainable
from freelunch.recover.training import Trainer
from freelunch.recover.windows import Window


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
        trained = [(network.block_name(i), block, _inside(window, i, block, halves)) for i, block in blocks.items()]
        with naming(where):
            trainable = Trainable(trained, mask_of, training, network.dtype)
        loaded.callback(trainable.close)
        count, objective = trainable.count, _Matching(network, window, blocks, halves, pairs, training)
        if len(window.matrices) > 1:
            _check_reach(trainable, objective, where)
        # of a window of matrices there is nothing to compile but the product; and where it ends is for a hook to say
        loaded.enter_context(compiled(blocks.values(), compile_ and not window.matrices))
        fit = Trainer(trainable, objective, training, where, window.index).fit()
        fit.seconds = time.perf_counter() - started  # with what it took to make inputs and targets
        return Trained({name: tensor.cpu() for name, tensor in fit.best.items()}, fit, count)


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


class _Matching:
    """The distance of what a window gives from its target."""

    def __init__(
        self, network: Network, window: Window, blocks: dict[int, nn.Module], halves: dict[int, Halves], pairs: Pairs,
        training: Training,
    ) -> None:  # fmt: skip
        if training.loss not in LOSSES:
            raise FreelunchError(f"{training.loss} is no loss of states")
        self._network, self._window, self._blocks, self._halves = network, window, blocks, halves
        self._pairs, self._loss = pairs, LOSSES[training.loss]
        self._uploads = Uploads(network.copies)

    def count(self, split: str) -> int:
        return len(self._pairs[split][0])

    def validation_batch(self) -> int:
        return max(1, VALIDATION_TOKENS["reconstruct"] // self._pairs["validation"][0].shape[1])

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
