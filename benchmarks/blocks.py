"""Blocks of large models on whatever accelerator is there: tokens a second, use of it, memory, and results against CPU.

A block with the widths of an 8B and one with those of a 72B, random weights and states: streamed as the dense pass
does, and trained as a reconstruction does, in windows of half a block and of a block, each in a process of its own.
"""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from freelunch.activations import States, run_states
from freelunch.costs import forward_operations
from freelunch.device import choose, products
from freelunch.overlays import InMemory
from freelunch.plan.facts import Facts
from freelunch.plan.specs import Training
from freelunch.recovery.flows import DenseFlow
from freelunch.recovery.reconstruct import reconstruct_window
from freelunch.streaming import Network
from freelunch.windows import tile

from .pruning import EIGHT_B
from .rate import matmul_rate
from .runs import alone

SEVENTY_TWO_B = Facts(
    model_type="qwen2", num_hidden_layers=80, hidden_size=8192, intermediate_size=29568, num_attention_heads=64,
    num_key_value_heads=8, head_dim=128, vocab_size=152064, max_position_embeddings=32768,
)  # fmt: skip
"""Qwen2.5-72B."""
SHAPES = {"8B": EIGHT_B, "72B": SEVENTY_TWO_B}
WINDOWS = ("attention_mlp", "block")
CHECKED = 64
"""Tokens of which the results of the accelerator and of the CPU are compared."""


@dataclass(frozen=True)
class Amount:
    """What is run: sequences of a number of tokens, in batches."""

    sequences: int
    length: int
    batch: int

    @classmethod
    def of(cls, device: torch.device) -> Amount:
        """As in the paper's setting on an accelerator; less on a CPU."""
        return cls(16, 4096, 2) if device.type == "cuda" else cls(4, 256, 2)


def main() -> None:
    """Run the benchmark and print it."""
    device = choose("auto")
    amount = Amount.of(device)
    kind, peak = alone(matmul_rate)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, {kind} matrix products: {peak / 1e12:.2f} TFLOP/s")
    print(f"{amount.sequences} sequences of {amount.length} tokens, batches of {amount.batch}\n")
    print(f"{'block of':>8} {'':24} {'tokens/s':>10} {'TFLOP/s':>8} {'of peak':>8} {'GiB':>7}")
    for shape in SHAPES:
        rows = {"streamed": alone(_streamed, shape)}
        rows |= {f"reconstruct ({window})": alone(_trained, shape, window) for window in WINDOWS}
        rows |= {f"{window}, compiled": alone(_trained, shape, window, True) for window in WINDOWS}
        for label, (tokens, rate, memory) in rows.items():
            print(f"{shape:>8} {label:24} {tokens:10.0f} {rate / 1e12:8.2f} {rate / peak:8.1%} {memory:7.2f}")
    print("tokens/s: of the calibration set, with all passes over it and over validation data")
    print("GiB: peak of the accelerator, if there is one, else of the process\n")
    for shape in SHAPES:
        for dtype, error in alone(_differences, shape).items():
            print(f"block of {shape}, {dtype} against float32 on the CPU: relative difference {error:.1e}")
    print()


def _network(facts: Facts, device: torch.device, computed: torch.dtype | None = None) -> Network:
    """One block of random weights, with next to no embedding."""
    shape = facts.model_dump(exclude={"mlp_matrices"}) | {"num_hidden_layers": 1, "vocab_size": 256}
    config = AutoConfig.for_model(**shape)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    weights = InMemory(dict(model.state_dict()))
    return Network(config, weights, torch.bfloat16, device, computed or products(torch.bfloat16, device))


def _states(facts: Facts, sequences: int, length: int, seed: int) -> Tensor:
    return torch.randn(sequences, length, facts.hidden_size, generator=torch.Generator().manual_seed(seed)).bfloat16()


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _streamed(shape: str) -> tuple[float, float, float]:
    """Tokens and operations a second of a forward pass, and peak memory in GiB."""
    facts, device = SHAPES[shape], choose("auto")
    amount, network = Amount.of(device), _network(facts, device)
    hidden = _states(facts, amount.sequences, amount.length, 0)
    with tempfile.TemporaryDirectory() as folder, network.block(0) as block:
        seconds = float("inf")
        for _ in range(3):
            started = time.perf_counter()
            # the states behind it are written to the host's memory, and so are there when it returns
            run_states(network, 0, block, "block", None, hidden, amount.batch, Path(folder))
            seconds = min(seconds, time.perf_counter() - started)
    tokens = amount.sequences * amount.length
    return tokens / seconds, forward_operations(facts, tokens, amount.length) / seconds, _peak(device)


def _trained(shape: str, window: str, compile_: bool = False) -> tuple[float, float, float]:
    """The same of one epoch of reconstruction, with the time that compiling takes."""
    facts, device = SHAPES[shape], choose("auto")
    amount, network = Amount.of(device), _network(facts, device)
    states = {
        "calibration": _states(facts, amount.sequences, amount.length, 0),
        "validation": _states(facts, amount.batch, amount.length, 1),
    }
    training = Training(learning_rate=1e-4, batch_size=amount.batch)
    with tempfile.TemporaryDirectory() as folder:
        walks = {split: States(network, {0: hidden}, amount.batch, Path(folder)) for split, hidden in states.items()}
        windows = tile(window, 1, [], "all")
        flow = DenseFlow(walks, network, states, windows, amount.batch, Path(folder))
        started, operations = time.perf_counter(), 0.0
        for each in windows:
            fit = reconstruct_window(flow, each, lambda name: None, training, compile_).fit
            share = (each.stop - each.start) / 2
            passes = 3 * fit.sequences + len(fit.steps) * amount.batch
            operations += share * forward_operations(facts, passes * amount.length, amount.length)
        seconds = time.perf_counter() - started
    # the dense targets: at every half of the block one forward pass over its half
    targets = (amount.sequences + amount.batch) * amount.length
    operations += forward_operations(facts, targets, amount.length)
    return amount.sequences * amount.length / seconds, operations / seconds, _peak(device)


def _differences(shape: str) -> dict[str, float]:
    """By what a block is computed in, how far its output is from that of the CPU in float32, relative to the latter."""
    facts, device = SHAPES[shape], choose("auto")
    hidden = _states(facts, 1, CHECKED, 0)

    def output(device: torch.device, computed: torch.dtype) -> Tensor:
        network = _network(facts, device, computed)
        with network.block(0) as block:
            return network.run_block(0, block, hidden).float().cpu()

    expected = output(torch.device("cpu"), torch.float32)
    found = {}
    for kind in (torch.bfloat16, torch.float32) if device.type == "cuda" else (torch.bfloat16,):
        difference = (output(device, kind) - expected).norm() / expected.norm()
        found[f"{str(kind).removeprefix('torch.')} on {device.type}"] = float(difference)
    return found
