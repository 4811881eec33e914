"""Windows of one matrix, solved for instead of trained: the best that any method can do matrix by matrix.

``min_V ||X W^T - X (M * V)^T||^2`` has a closed form per row, from the Gram matrix of the dense inputs. With biases it
is the same with centred inputs, and the bias makes up for the mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from freelunch.engine.states import batches
from freelunch.engine.streaming import Network
from freelunch.plan.specs import Training
from freelunch.prune.hessian import masked_least_squares, solvable
from freelunch.prune.statistics import Statistics
from freelunch.recover.fit import Fit, Trained
from freelunch.recover.flows import DenseFlow, Pairs
from freelunch.recover.parametrizations import parse_parametrization
from freelunch.recover.trainable import MaskOf
from freelunch.recover.windows import Window

DAMPING = 1e-6
"""Share of the mean diagonal that is added to it: no more than what float32 needs to factorise most Gram matrices."""


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
