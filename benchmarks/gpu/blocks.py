"""Blocks of large models: how fast they are run, pruned and reconstructed, what memory that takes, and its results.

One block with the widths of Llama-3.1-8B and one with those of Qwen2.5-72B, of random weights, go through the same code
as in the stages; weights and hidden states lie in the host's memory. Rates are set beside that of large matrix products
on the same device, peaks of memory beside what the plan predicts, and outputs beside those of the CPU in float32.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from freelunch.costs import cost
from freelunch.engine.blocks import matrices
from freelunch.engine.device import products
from freelunch.engine.overlays import InMemory
from freelunch.engine.states import States, forward, run_states, scratch
from freelunch.engine.streaming import Network
from freelunch.engine.transfers import Copies
from freelunch.plan.config import Config, ExecutionConfig
from freelunch.plan.facts import Facts
from freelunch.plan.spec import Spec
from freelunch.plan.specs import CalibrationSpec, DataSpec, DenseSpec, GramsSpec, ReconstructedSpec, Training
from freelunch.pruning.matrix import Matrix, Statistics
from freelunch.pruning.method import Method, parse_method
from freelunch.pruning.patterns import NM
from freelunch.pruning.pruner import prune_matrix
from freelunch.pruning.statistics import Collector, on_device
from freelunch.recover.flows import DenseFlow
from freelunch.recover.reconstruct import reconstruct_window
from freelunch.recover.training import Trained
from freelunch.recover.windows import Window, tile

from ..pruning import EIGHT_B
from ..rate import matmul_rate
from ..runs import pruned_from, random_model
from . import profiling
from .cells import Cell, Row, Steps, after_steps, fastest, now, peak_gib, reset_peak, run_cells, table
from .profiling import Profile

SEVENTY_TWO_B = Facts(
    model_type="qwen2", num_hidden_layers=80, hidden_size=8192, intermediate_size=29568, num_attention_heads=64,
    num_key_value_heads=8, head_dim=128, vocab_size=152064, max_position_embeddings=32768,
)  # fmt: skip
"""Qwen2.5-72B."""
SHAPES = {"8B": EIGHT_B, "72B": SEVENTY_TWO_B}
GOAL = 0.6
"""Share of the rate of matrix products that training is to have."""
PATTERN = NM(2, 4)
WINDOWS = ("block", "attention_mlp")
STEPS = 6
"""Of a training that is timed."""
PROFILED = (5, 8)
"""Steps of a training of twelve after which a profile begins and ends: it is validated after steps 4, 8 and 12."""
COMPARED = 64
"""Tokens whose outputs are compared with those of the CPU."""
COMPILING = 35.0
"""Seconds that there must be for a training that is compiled."""


@dataclass(frozen=True)
class Scale:
    """What is run.

    Attributes:
        shapes: blocks by name.
        length: tokens of a sequence.
        batches: sequences at a time.
        compiled: whether trainings are compiled too.
        hurried: whether cells take no time to speak of.
    """

    shapes: Mapping[str, Facts]
    length: int
    batches: tuple[int, ...] = (2, 8)
    compiled: bool = True
    hurried: bool = False


FULL = Scale(SHAPES, 4096)
SMALLEST = Scale(
    {
        name: facts.model_copy(
            update={
                "hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "num_attention_heads": 4,
                "num_key_value_heads": 2,
            }
        )
        for name, facts in SHAPES.items()
    },
    length=16,
    compiled=False,
    hurried=True,
)  # fmt: skip


def measure(
    device: torch.device,
    smallest: bool,
    seconds: float = 150.0,
    folder: Path | None = None,
    scale: Scale | None = None,
    keep: Callable[[dict[str, Any]], object] = len,
) -> dict[str, Any]:
    """All rows that there is time for; ``keep`` is given the result so far after every measurement.

    Args:
        smallest: blocks of some thousand weights, for a CPU.
        folder: where hidden states find room on disk; among temporary files if None.
        scale: another size.
    """
    end = time.perf_counter() + seconds
    scale = scale or (SMALLEST if smallest else FULL)
    kind, rate = matmul_rate(0.2 if scale.hurried else 2.0, device)

    def result(rows: list[Row]) -> dict[str, Any]:
        for row in rows:
            if row.get("tflops") is not None:
                row["share"] = row["tflops"] * 1e12 / rate
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        about = {"device": name, "products": kind, "rate_tflops": rate / 1e12, "goal": GOAL, "length": scale.length}
        return about | {"rows": rows}

    with tempfile.TemporaryDirectory(dir=folder) as room:
        blocks = [Block(name, facts, scale.length, device, Path(room)) for name, facts in scale.shapes.items()]
        rows = run_cells(_cells(blocks, scale), device, end - time.perf_counter(), lambda rows: keep(result(rows)))
        del blocks
    return result(rows)


def lines(result: Mapping[str, Any]) -> list[str]:
    """Tables of the rows, and the profiles."""
    rows = result["rows"]
    plain = [row for row in rows if "difference" not in row and "kernels" not in row]
    columns = {
        "tokens/s": ".0f", "TFLOP/s": ".1f", "of rate": ".1%", "seconds": ".2f", "GiB": ".2f", "predicted": ".2f",
    }  # fmt: skip
    keys = dict(zip(columns, ("tokens_per_s", "tflops", "share", "seconds", "gib", "predicted_gib"), strict=True))
    shown = [row | {name: row.get(key) for name, key in keys.items()} for row in plain]
    found = [
        f"{result['device']}: {result['products']} matrix products, {result['rate_tflops']:.1f} TFLOP/s; goal of "
        f"training: {result['goal']:.0%} of it; sequences of {result['length']} tokens",
        *table(shown, ("shape", "what", "batch"), columns),
        "training: tokens/s and TFLOP/s of its fastest step; seconds of all of it, with reading, targets, validation",
        "Gram matrices, and what is made of them, are computed in float32, which has a rate of its own",
        "GiB: peak that torch allocated on the device, and what the plan predicts",
    ]
    trained: dict[str, float] = {}
    for row in rows:
        if "step_seconds" in row:
            trained[row["shape"]] = max(row["share"], trained.get(row["shape"], 0.0))
    found += [f"training of {shape}: at best {share:.0%} of the rate" for shape, share in trained.items()]
    for row in rows:
        if "difference" in row:
            found.append(f"{row['shape']}, {row['what']}, {row['dtype']}: relative difference {row['difference']:.1e}")
        if "kernels" in row:
            found += profiling.lines(row)
    return found


# --- a block ---------------------------------------------------------------------------------------------------------


class Block:
    """A block of random weights, and hidden states that it is run on; made when they are looked at.

    Args:
        length: tokens of a sequence.
        folder: where hidden states find room on disk.
    """

    def __init__(self, name: str, facts: Facts, length: int, device: torch.device, folder: Path) -> None:
        self.name, self.facts, self.length, self.device, self.folder = name, facts, length, device, folder
        shape = facts.model_dump(exclude={"mlp_matrices"}) | {"num_hidden_layers": 1, "vocab_size": 256}
        self.config = AutoConfig.for_model(**shape)
        self._hidden: Tensor | None = None

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """In bfloat16, in the host's memory; made on the device, which takes seconds where a CPU takes a minute."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self.config, dtype=torch.bfloat16)
        generator = torch.Generator(self.device).manual_seed(0)
        found = {}
        for name, like in model.state_dict().items():
            if like.ndim > 1:
                made = torch.empty(like.shape, dtype=torch.bfloat16, device=self.device)
                found[name] = made.normal_(0, self.config.initializer_range, generator=generator).cpu()
            else:
                found[name] = torch.full(like.shape, float(name.endswith("weight")), dtype=torch.bfloat16)
        return found

    @cached_property
    def masks(self) -> dict[str, Tensor]:
        """The two largest of every four weights of each matrix, by the weight's name; in the host's memory."""
        found = {}
        for name, weight in self.weights.items():
            if weight.ndim > 1 and ".layers." in name:
                found[name] = PATTERN.mask(weight.to(self.device).float().abs(), weight.numel() // 2).cpu()
        return found

    def hidden(self, sequences: int) -> Tensor:
        """Hidden states ``[sequences, length, width]`` in bfloat16: memory-mapped, as those of a dense cache are."""
        if self._hidden is None or len(self._hidden) < sequences:
            shape = (sequences, self.length, self.facts.hidden_size)
            generator = torch.Generator(self.device).manual_seed(1)
            self._hidden = scratch(self.folder, shape, torch.bfloat16)
            for states in self._hidden:
                states.copy_(torch.randn(shape[1:], device=self.device, generator=generator))
        return self._hidden[:sequences]

    def network(self, device: torch.device | None = None, computed: torch.dtype | None = None) -> Network:
        """A model of this block alone, on the device and in the numbers that it would be computed with."""
        device = device or self.device
        computed = computed or products(torch.bfloat16, device)
        return Network(self.config, InMemory(self.weights), torch.bfloat16, device, computed)


def forward_operations(facts: Facts, tokens: int, length: int, part: str = "block") -> float:
    """Products and sums that a forward pass through a block, or its ``attention`` or ``mlp`` half, needs.

    Each token attends to itself and to those before it; what a kernel computes besides is not counted.
    """
    roles = {"attention": ("q", "k", "v", "o"), "mlp": tuple(facts.matrices.keys() - {"q", "k", "v", "o"})}
    inside = [facts.matrices[role] for role in roles.get(part, facts.matrices)]
    attention = 0.0 if part == "mlp" else 2.0 * tokens * (length + 1) * facts.num_attention_heads * facts.head_dim
    return 2.0 * tokens * sum(rows * columns for rows, columns in inside) + attention


# --- measurements ----------------------------------------------------------------------------------------------------


def _cells(blocks: list[Block], scale: Scale) -> Iterator[Cell]:
    """What says most comes first."""
    first, *others = scale.batches

    def cell(block: Block, what: str, seconds: float, measure: Callable[[], Iterable[Row]], **label: Any) -> Cell:
        return Cell({"shape": block.name, "what": what} | label, measure, 0.0 if scale.hurried else seconds)

    def training(block: Block, window: str, batch: int, compile_: bool = False) -> Cell:
        what = f"reconstruct {window}" + (", compiled" if compile_ else "")
        rows = partial(training_rows, block, window, batch, compile_)
        return cell(block, what, COMPILING if compile_ else 8, rows, batch=batch)

    for block in blocks:
        yield cell(block, "output against the CPU's", 5, partial(difference_rows, block))
    for block in blocks:
        yield cell(block, "dense pass", 5, partial(dense_rows, block, first), batch=first)
    for window in WINDOWS:
        yield from (training(block, window, first) for block in blocks)
    largest = blocks[-1]
    yield cell(largest, "profile of training", 10, partial(profiled_training, largest, first), batch=first)
    yield cell(largest, "profile of the dense pass", 5, partial(profiled_pass, largest, first), batch=first)
    if scale.compiled:
        yield training(blocks[0], WINDOWS[0], first, True)
    for block in blocks:
        yield cell(block, "prune with wanda", 5, partial(pruning_rows, block, "wanda", first), batch=first)
    for block in blocks:
        yield cell(block, "prune with sparsegpt", 15, partial(pruning_rows, block, "sparsegpt", first), batch=first)
    compiled = [
        training(block, window, batch, True) for batch in scale.batches for window in WINDOWS for block in blocks
    ]  # fmt: skip
    for batch in others:
        for block in blocks:
            yield training(block, WINDOWS[0], batch)
            yield cell(block, "dense pass", 8, partial(dense_rows, block, batch), batch=batch)
    yield from (training(block, window, batch) for batch in others for window in WINDOWS[1:] for block in blocks)
    if scale.compiled:
        yield from compiled[1:]


def difference_rows(block: Block) -> Iterator[Row]:
    """How far the output is from that of the CPU in float32, relative to the latter."""
    hidden = block.hidden(1)[:, :COMPARED]

    def output(device: torch.device, computed: torch.dtype) -> Tensor:
        network = block.network(device, computed)
        with network.block(0) as module:
            return network.run_block(0, module, hidden).float().cpu()

    expected = output(torch.device("cpu"), torch.float32)
    for computed in (torch.bfloat16, torch.float32) if block.device.type == "cuda" else (torch.bfloat16,):
        difference = (output(block.device, computed) - expected).norm() / expected.norm()
        yield {"dtype": str(computed).removeprefix("torch."), "difference": float(difference)}


def dense_rows(block: Block, batch: int) -> Iterator[Row]:
    """A forward pass; the states behind the block are written to the host's memory."""
    network, hidden = block.network(), block.hidden(STEPS * batch)
    reset_peak(block.device)
    started = now(block.device)
    with network.block(0) as module:
        reading = now(block.device) - started
        run = partial(run_states, network, 0, module, "block", None, hidden, batch, block.folder)
        seconds = fastest(run, block.device, 2)
    tokens = len(hidden) * block.length
    yield {
        **_rates(forward_operations(block.facts, tokens, block.length), tokens, seconds),
        "reading_seconds": reading,
        **_memory(block, _dense_spec(block, batch), batch),
    }


def training_rows(
    block: Block, window: str, batch: int, compile_: bool = False, copies: Copies | None = None
) -> Iterator[Row]:
    """Reconstruction of the windows of a block, one epoch of ``STEPS`` steps.

    Args:
        copies: how batches get to the device; as they do in the stages, if None.
    """
    facts, length = block.facts, block.length
    flow, windows = _flow(block, window, STEPS * batch, batch, copies)
    tokens = batch * length
    fastest_steps = operations = everything = delivered = 0.0
    losses = []
    assert block.masks  # made now, since that takes time and memory
    reset_peak(block.device)
    started = now(block.device)
    for each in windows:
        part, steps = each.part(0), Steps(block.device)
        with steps.taken():
            fit = _trained(block, flow, each, batch, compile_).fit
        losses.append([fit.losses[0], min(fit.losses)])
        step = steps.fastest()
        fastest_steps += step
        # inputs and targets, of 16 bits
        delivered = max(delivered, 2 * 2 * facts.hidden_size * tokens / step / 1e9)
        # the backward pass has twice as many: norms are trained, so that every input has a gradient
        operations += 3 * forward_operations(facts, tokens, length, part)
        passes = 3 * fit.sequences + len(fit.steps) * batch
        everything += forward_operations(facts, passes * length, length, part)
        del fit
        gc.collect()  # as a job does: optimisers refer to themselves
    seconds = now(block.device) - started
    everything += forward_operations(facts, (STEPS + 1) * tokens, length)  # the dense targets
    yield {
        **_rates(operations, tokens, fastest_steps),
        "seconds": seconds,
        "step_seconds": fastest_steps,
        "tflops_of_all": everything / seconds / 1e12,
        "states_gb_per_s": delivered,
        "losses": losses,
        **_memory(block, _trained_spec(block, window, batch), batch),
    }


def pruning_rows(block: Block, criterion: str, batch: int) -> Iterator[Row]:
    """Statistics of the inputs of all matrices, Gram matrices among them if the criterion needs those; then masks and,
    if it changes them, weights of all matrices, each brought to the device with its Gram matrix.
    """
    facts, device = block.facts, block.device
    method = parse_method(criterion, str(PATTERN), "uniform", "none")
    network, hidden = block.network(), block.hidden(STEPS * batch)
    with network.block(0) as module:
        _collect(block, network, module, hidden[:batch], batch, method.needs_gram)  # to warm up
        reset_peak(device)
        started = now(device)
        found, leaders = _collect(block, network, module, hidden, batch, method.needs_gram)
        seconds = now(device) - started
    tokens = len(hidden) * block.length
    inputs = [facts.matrices[role][1] for role in ("q", "o", "up", "down")]
    grams = sum(2.0 * tokens * columns**2 for columns in inputs) if method.needs_gram else 0.0
    dense = _dense_spec(block, batch)
    yield {
        "what": f"{'Gram matrices' if method.needs_gram else 'statistics'} ({criterion})",
        **_rates(forward_operations(facts, tokens, block.length) + grams, tokens, seconds),
        **_memory(block, GramsSpec(dense=dense) if method.needs_gram else dense, batch),
    }
    del module, network
    # as they are read from files: one for all matrices that share an input, in the host's memory
    shared = {leader: _moved(found[leader], torch.device("cpu")) for leader in leaders.values()}
    found.clear()
    _warm(method, device)
    reset_peak(device)
    started = now(device)
    held: dict[str, Statistics] = {}
    for name, leader in leaders.items():
        if leader not in held:
            held.clear()
            held[leader] = _moved(shared[leader], device)
        _prune(method, name, block.weights[f"model.layers.0.{name}.weight"], held[leader], device)
    seconds = now(device) - started
    held.clear()
    updates = sum(rows * columns**2 for rows, columns in facts.matrices.values()) + sum(2 * c**3 / 3 for c in inputs)
    yield {
        "what": f"{'masks and weights' if method.changes_weights else 'masks'} ({criterion})",
        "seconds": seconds,
        "tflops": updates / seconds / 1e12 if method.changes_weights else None,
        **_memory(block, pruned_from(dense, criterion, str(PATTERN)), batch),
    }


def profiled_training(block: Block, batch: int) -> Iterator[Row]:
    """Some steps of the training of a whole block."""
    first, last = PROFILED
    flow, windows = _flow(block, WINDOWS[0], 2 * STEPS * batch, batch)
    profile = Profile(block.device)

    def after(step: int) -> None:
        if step == first:
            profile.start()
        if step == last:
            profile.stop()

    try:
        with after_steps(after):
            _trained(block, flow, windows[0], batch, False)
    finally:
        profile.stop()
    yield {"what": f"steps {first + 1} to {last} of training, window block", **profile.row()}


def profiled_pass(block: Block, batch: int) -> Iterator[Row]:
    """The dense pass."""
    network, hidden = block.network(), block.hidden(STEPS * batch)
    with network.block(0) as module:
        run = partial(run_states, network, 0, module, "block", None, hidden, batch, block.folder)
        run()
        profile = Profile(block.device)
        profile.start()
        try:
            run()
        finally:
            profile.stop()
    yield profile.row()


# --- the stages' code ------------------------------------------------------------------------------------------------


def _flow(
    block: Block, window: str, sequences: int, batch: int, copies: Copies | None = None
) -> tuple[DenseFlow, list[Window]]:
    """What the windows of a block are trained on: so many sequences, and a batch to validate with."""
    dense, student = block.network(), block.network()
    if copies is not None:
        dense.copies = student.copies = copies
    hidden = block.hidden(sequences)
    states = {"calibration": hidden, "validation": hidden[:batch]}
    walks = {split: States(dense, {0: each}, batch, block.folder) for split, each in states.items()}
    windows = tile(window, 1)
    return DenseFlow(walks, student, states, windows, batch, block.folder), windows


def _trained(block: Block, flow: DenseFlow, window: Window, batch: int, compile_: bool) -> Trained:
    training = Training(learning_rate=1e-5, batch_size=batch)
    return reconstruct_window(flow, window, block.masks.get, training, compile_)


def _collect(
    block: Block, network: Network, module: torch.nn.Module, hidden: Tensor, batch: int, gram: bool
) -> tuple[dict[str, Statistics], dict[str, str]]:
    """Statistics by matrix, and the first matrix that reads the same input. Without Gram matrices it is the dense pass
    that collects them, and its states are written.
    """
    collector = Collector(matrices(module), gram)
    target = None if gram else scratch(block.folder, tuple(hidden.shape), torch.bfloat16)
    with collector.watching():
        forward(network, 0, module, "block", None, hidden, target, batch)
    return collector.results(), collector.leaders


def _moved(statistics: Statistics, device: torch.device) -> Statistics:
    """With the Gram matrix, if there is one, on a device that has room for it."""
    return statistics if statistics.gram is None else replace(statistics, gram=on_device(statistics.gram, device))


def _prune(method: Method, name: str, weight: Tensor, statistics: Statistics, device: torch.device) -> None:
    """As a job prunes a matrix: where its Gram matrix found room, and to where its files are written from."""
    where = device if statistics.gram is None else statistics.gram.device
    found = prune_matrix(method, Matrix(name, weight.to(where).float(), statistics), weight.numel() // 2)
    found.mask.cpu()
    if method.changes_weights:
        (found.weight * found.mask).to(torch.bfloat16).cpu()


def _warm(method: Method, device: torch.device) -> None:
    """Prune a small matrix: libraries are loaded when they are first used."""
    inputs = torch.randn(512, 256)
    gram = inputs.T @ inputs if method.needs_gram else None
    statistics = Statistics(len(inputs), inputs.double().sum(0), inputs.double().square().sum(0), gram)
    _prune(method, "warm", torch.randn(256, 256), _moved(statistics, device), device)


# --- what is set beside the measurements -----------------------------------------------------------------------------


def _rates(operations: float, tokens: int, seconds: float) -> Row:
    return {"tokens_per_s": tokens / seconds, "tflops": operations / seconds / 1e12, "seconds": seconds}


def _memory(block: Block, spec: Spec, batch: int) -> Row:
    """The peak so far, and the plan's prediction for a job on a GPU."""
    model = random_model(_without_embedding(block.facts), 1)
    execution = ExecutionConfig(device="cuda", stream_tokens=batch * block.length)
    config = Config(
        default_suite="none", models={model.model: model.source}, data={}, suites={}, execution=execution
    )  # fmt: skip
    return {"gib": peak_gib(block.device), "predicted_gib": cost(spec, config).device / 2**30}


def _dense_spec(block: Block, batch: int) -> DenseSpec:
    source: Any = {"path": "none", "splits": {"calibration": 0.5, "validation": 0.5}}
    calibration = CalibrationSpec(
        model=random_model(_without_embedding(block.facts), 1), data=DataSpec(data="none", source=source),
        sequences=STEPS * batch, validation_sequences=batch, length=block.length, sampling="packed", seed=0,
    )  # fmt: skip
    return DenseSpec(calibration=calibration)


def _trained_spec(block: Block, window: str, batch: int) -> ReconstructedSpec:
    dense = _dense_spec(block, batch)
    return ReconstructedSpec(
        pruned=pruned_from(dense, "wanda", str(PATTERN)), dense=dense, window=window, flow="dense",
        training=Training(learning_rate=1e-5, batch_size=batch),
    )  # fmt: skip


@cache
def _without_embedding(facts: Facts) -> Facts:
    return facts.model_copy(update={"vocab_size": 256})
