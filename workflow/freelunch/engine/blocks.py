"""The blocks of a decoder and their halves, found in any Hugging Face causal LM without per-family code.

A half is not re-implemented: it is the real block, stopped before the module that reads the state between the halves
(attention half), or run with its attention replaced by a stub that returns zeros (MLP half). Whether a block can be
cut so is decided by trying: the halves in a row must give exactly what the block gives.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from freelunch.errors import FreelunchError


class StopForward(Exception):
    """Ends a forward pass on purpose; its argument is the hidden state there."""


class _Caught(Exception):
    """Ends a forward pass behind a layer; its arguments are the input and output of the layer.

    It is no :class:`StopForward`, which a half would take for its own.
    """


@dataclass(frozen=True)
class Call:
    """The arguments a block is called with, besides the hidden state. They depend on the batch's shape only."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Halves:
    """Where a block is cut: its attention child, and the child whose input is the state between the halves."""

    attention: str
    boundary: str
    first: frozenset[str]
    """Children that belong to the attention half; all others belong to the MLP half."""

    def part(self, name: str) -> str:
        """The half that a module or parameter lies in, also one that was not there when the cut was found."""
        return "attention" if name.partition(".")[0] in self.first else "mlp"


def find_blocks(model: nn.Module, count: int) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder's blocks: the outermost module list with as many entries as the config has layers.

    Raises:
        FreelunchError: no list, or more than one, has that length.
    """
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inner = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList) and len(module) == count and not inner:
            lists[name] = module
    if len(lists) != 1:
        places = ", ".join(lists) or "nowhere"
        raise FreelunchError(f"{type(model).__name__}: looked for one list of {count} blocks, found it in: {places}")
    return lists.popitem()


def matrices(block: nn.Module) -> dict[str, nn.Linear]:
    """The prunable matrices of a block, by name: all its linear layers.

    Raises:
        FreelunchError: there is none, or the block holds weights elsewhere (fused experts, 1-d convolutions).
    """
    linear = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    inside = sum(module.weight.numel() for module in linear.values())
    total = sum(parameter.numel() for parameter in block.parameters())
    if inside < 0.9 * total:
        raise FreelunchError(
            f"{type(block).__name__}: only {inside} of {total} weights are in linear layers; "
            "blocks with fused experts or other kinds of layers cannot be pruned"
        )
    return linear


def call_block(block: nn.Module, hidden: Tensor, call: Call) -> Tensor:
    """The block's output; layers return a bare tensor or a tuple that starts with it, depending on the version."""
    output = block(hidden, *call.args, **call.kwargs)
    state: Tensor = output if isinstance(output, Tensor) else output[0]
    return state


def run_part(block: nn.Module, part: str, halves: Halves | None, hidden: Tensor, call: Call) -> Tensor:
    """Run ``block``, or its ``attention`` or ``mlp`` half, on ``hidden`` ``[batch, length, width]``."""
    if part == "block":
        return call_block(block, hidden, call)
    assert halves is not None
    if part == "mlp":
        attention = block.get_submodule(halves.attention)
        setattr(block, halves.attention, _Silent())
        try:
            return call_block(block, hidden, call)
        finally:
            setattr(block, halves.attention, attention)

    def stop(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise StopForward(inputs[0])

    try:
        with block.get_submodule(halves.boundary).register_forward_pre_hook(stop):
            call_block(block, hidden, call)
    except StopForward as stopped:
        state: Tensor = stopped.args[0]
        return state.reshape(hidden.shape)  # some layers flatten batch and length before their MLP
    raise AssertionError("the forward pass did not reach the boundary between the halves")


def run_until(block: nn.Module, matrix: str, hidden: Tensor, call: Call) -> Tensor:
    """What a linear layer of the block gives when the block is run on ``hidden``; nothing after it is run."""
    return caught(block, matrix, lambda: call_block(block, hidden, call))[1]


def caught(block: nn.Module, matrix: str, run: Callable[[], object]) -> tuple[Tensor, Tensor]:
    """Input and output of a linear layer while ``run`` is under way, which is ended there."""

    def stop(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        raise _Caught(inputs[0], output)

    try:
        with block.get_submodule(matrix).register_forward_hook(stop):
            run()
    except _Caught as stopped:
        inputs, output = stopped.args
        return inputs, output
    raise AssertionError(f"the forward pass did not reach {matrix}")


def part_parameters(block: nn.Module, part: str, halves: Halves | None) -> list[str]:
    """Names of the block's parameters that lie in a part."""
    names = [name for name, _ in block.named_parameters()]
    if part == "block":
        return names
    assert halves is not None
    return [name for name in names if halves.part(name) == part]


@torch.no_grad()
def find_halves(block: nn.Module, hidden: Tensor, call: Call) -> Halves:
    """Find where to cut a block, by running it once on ``hidden`` and watching its children.

    Raises:
        FreelunchError: the block has no state between attention and MLP (parallel residual), or cutting it there
            does not reproduce its output.
    """
    children: list[tuple[str, Any, Any, bool]] = []  # name, first input, output, whether it is handed a mask

    def watch(name: str, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        first = args[0] if args else kwargs.get("hidden_states")
        children.append((name, first, output[0] if isinstance(output, tuple) else output, "attention_mask" in kwargs))

    with ExitStack() as hooks:
        for name, child in block.named_children():
            hooks.enter_context(child.register_forward_hook(partial(watch, name), with_kwargs=True))
        whole = call_block(block, hidden, call)

    refused = f"{type(block).__name__}: cannot be cut into attention and MLP halves; use window: block"
    at = next((index for index, (*_, masked) in enumerate(children) if masked), None)
    if at is None:
        raise FreelunchError(f"{refused} (no child is handed an attention mask)")
    # what attention gave, and what only touched it (norms after attention), is not yet the residual stream
    attention, _, given, _ = children[at]
    produced = [given]
    for later in range(at + 1, len(children)):
        name, first, output, _ = children[later]
        if any(first is made for made in produced):
            produced.append(output)
            continue
        halves = Halves(attention, name, frozenset(called for called, *_ in children[:later]))
        try:
            middle = run_part(block, "attention", halves, hidden, call)
            if torch.equal(run_part(block, "mlp", halves, middle, call), whole):
                return halves
        except (TypeError, ValueError, AttributeError) as error:
            raise FreelunchError(f"{refused} ({error})") from None
        raise FreelunchError(f"{refused} (attention and MLP do not follow each other)")
    raise FreelunchError(f"{refused} (nothing reads the state after attention)")


class _Silent(nn.Module):
    """Stands for an attention module that adds nothing."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(args[0] if args else kwargs["hidden_states"]), None
