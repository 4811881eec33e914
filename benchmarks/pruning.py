"""What pruning takes: every criterion and refinement on the demo's model, and on one block of an 8B model.

The first table runs the real stage on random weights of the demo model's shape, in one thread as the workflow does. The
second prunes the seven matrices of one block with the widths of Llama-3.1-8B, random weights and correlated random
inputs, each method in a process of its own. The last compares SparseGPT with the loop over columns that it is defined
by.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from freelunch.engine.device import choose
from freelunch.engine.overlays import SafetensorsFiles
from freelunch.plan.facts import Facts
from freelunch.plan.spec import Spec
from freelunch.plan.specs import GramsSpec
from freelunch.pruning.criteria import CRITERIA
from freelunch.pruning.hessian import inverse_factor
from freelunch.pruning.matrix import Matrix, Pruned, Statistics
from freelunch.pruning.method import parse_method
from freelunch.pruning.pruner import prune_matrix
from freelunch.pruning.refinements import REFINEMENTS

from .runs import alone, pruned_from, random_dense, run, the_demo, write_text

PATTERN = "2:4"
EIGHT_B = Facts(
    model_type="llama", num_hidden_layers=32, hidden_size=4096, intermediate_size=14336, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128, vocab_size=128256, max_position_embeddings=131072,
)  # fmt: skip
READ = {"q": "q", "k": "q", "v": "q", "o": "o", "gate": "up", "up": "up", "down": "down"}
"""Which matrix' input each matrix reads."""
_ROWS = 256
TOO_WIDE = {"admm", "exact"}
"""What takes many minutes on 14,336 inputs without an accelerator: many products, or a factorisation for every row."""


def methods() -> list[tuple[str, str]]:
    """All criteria, and all refinements on Wanda."""
    return [(name, "none") for name in CRITERIA.names] + [("wanda", name) for name in REFINEMENTS.names]


def main() -> None:
    """Run the benchmark and print it."""
    demo, facts, execution = the_demo()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_text(root / "text.jsonl", demo)
        dense = random_dense(demo, facts, facts.num_hidden_layers, root)
        grams = GramsSpec(dense=dense)
        above: list[Spec] = [dense.calibration.model, dense.calibration.data, dense.calibration, dense, grams]
        for spec in above:
            alone(run, spec, root, execution)
        size = facts.num_hidden_layers * facts.block_parameters
        print(f"the demo's model ({size / 1e6:.0f} M weights, {PATTERN}): seconds and GiB of the stage in one thread")
        for criterion, refinement in methods():
            found = alone(_one_thread, pruned_from(dense, criterion, PATTERN, refinement), root, execution)
            print(f"  {_label(criterion, refinement):16} {found['seconds']:8.1f} {found['peak_gib']:7.2f}")

        _write_inputs(root / "wide.safetensors")
        size = EIGHT_B.block_parameters
        print(f"\none block of an 8B model ({size / 1e6:.0f} M weights, {PATTERN}): seconds, GiB, error of the outputs")
        for criterion, refinement in methods():
            if refinement in TOO_WIDE and choose("auto").type == "cpu":
                print(f"  {_label(criterion, refinement):16} left out without an accelerator")
                continue
            # the error needs Gram matrices, which not every method has in memory: it is measured apart
            seconds, peak = alone(_wide, root / "wide.safetensors", criterion, refinement)
            error = alone(_wide_error, root / "wide.safetensors", criterion, refinement)
            print(f"  {_label(criterion, refinement):16} {seconds:8.1f} {peak:7.2f} {error:8.4f}")
    print("GiB: peak of the process, 0.3 to 0.7 of it Python and its libraries; of the accelerator, if there is one")
    print("error: ||X (W - V)^T||^2 / ||X W^T||^2, mean over the matrices, of their first 256 rows\n")

    print("SparseGPT against the loop over columns, 50%")
    for rows, columns in ((facts.hidden_size, facts.intermediate_size), (EIGHT_B.hidden_size, EIGHT_B.hidden_size)):
        blocked, loop, difference = alone(_against_loop, rows, columns)
        print(f"  {rows} x {columns}: {blocked:.2f} s, loop {loop:.2f} s, ratio {loop / blocked:.1f}; ", end="")
        print(f"weights differ by {difference:.1e} of their norm")
    print()


def _label(criterion: str, refinement: str) -> str:
    return criterion if refinement == "none" else f"{criterion} + {refinement}"


def _one_thread(spec: dict[str, Any], root: Path, execution: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    return run(spec, root, execution)


def correlated(tokens: int, columns: int, seed: int) -> Tensor:
    """Inputs ``[tokens, columns]`` as a network has them: correlated, off centre, with a few loud columns."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(tokens, columns // 8, generator=generator)
    mixed = factors @ torch.randn(columns // 8, columns, generator=generator) / (columns // 8) ** 0.5
    loud = 1 + 20 * (torch.rand(columns, generator=generator) > 0.995)
    noise = torch.randn(tokens, columns, generator=generator)
    found: Tensor = (mixed + 0.5 * noise + 0.2 * torch.randn(columns, generator=generator)) * loud
    return found


def _statistics(inputs: Tensor) -> Statistics:
    exact = inputs.double()
    return Statistics(len(inputs), exact.sum(0), exact.square().sum(0), inputs.T @ inputs)


def _write_inputs(path: Path) -> None:
    """Statistics of the four inputs of a block, so that no timed process has to make them."""
    tensors: dict[str, Tensor] = {}
    for seed, role in enumerate(sorted(set(READ.values()))):
        found = _statistics(correlated(2048, EIGHT_B.matrices[role][1], seed))
        assert found.gram is not None
        tensors |= {f"{role}.sums": found.sums, f"{role}.squares": found.squared_norms, f"{role}.gram": found.gram}
    save_file(tensors, path)


def _wide(path: Path, criterion: str, refinement: str) -> tuple[float, float]:
    """Seconds to prune a block, and peak memory in GiB."""
    seconds = 0.0
    needs_gram = parse_method(criterion, PATTERN, "uniform", refinement).needs_gram
    for matrix in _wide_matrices(path, needs_gram):
        started = time.perf_counter()
        _pruned(matrix, criterion, refinement)
        if matrix.weight.device.type == "cuda":
            torch.cuda.synchronize()
        seconds += time.perf_counter() - started
    return seconds, _peak()


def _wide_error(path: Path, criterion: str, refinement: str) -> float:
    """Mean relative error of the matrices of a pruned block, over their first rows: all of them take minutes."""
    errors = []
    for matrix in _wide_matrices(path, True):
        pruned = _pruned(matrix, criterion, refinement)
        some = Pruned(pruned.mask[:_ROWS], pruned.weight[:_ROWS], None)
        errors.append(relative_error(replace(matrix, weight=matrix.weight[:_ROWS]), some))
    return sum(errors) / len(errors)


def _pruned(matrix: Matrix, criterion: str, refinement: str) -> Pruned:
    method = parse_method(criterion, PATTERN, "uniform", refinement)
    return prune_matrix(method, matrix, matrix.weight.numel() // 2)


def _wide_matrices(path: Path, with_gram: bool) -> Iterator[Matrix]:
    """The matrices of the block one by one; those that read the same input share its statistics."""
    device, files = choose("auto"), SafetensorsFiles([path])
    found: dict[str, Statistics] = {}
    for seed, (role, read) in enumerate(READ.items()):
        if read not in found:
            found.clear()
            gram = files.load(f"{read}.gram").to(device) if with_gram else None
            found[read] = Statistics(2048, files.load(f"{read}.sums"), files.load(f"{read}.squares"), gram)
        rows, columns = EIGHT_B.matrices[role]
        weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) / columns**0.5
        yield Matrix(role, weight.to(device), found[read])


def relative_error(matrix: Matrix, pruned: Pruned) -> float:
    """``||X (W - V)^T||^2 / ||X W^T||^2`` of a pruned matrix ``V``, from the Gram matrix of the inputs.

    A change of the bias is left out.
    """
    gram = matrix.inputs.gram
    assert gram is not None
    lost = matrix.weight - pruned.weight * pruned.mask
    errors, outputs = ((((each @ gram.to(each)) * each).sum()).double() for each in (lost, matrix.weight))
    return float(errors / outputs) if float(outputs) > 0 else 0.0


def _peak() -> float:
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _against_loop(rows: int, columns: int) -> tuple[float, float, float]:
    """Seconds of SparseGPT, seconds of the loop, and how far their weights are apart."""
    device = choose("auto")
    inputs = correlated(2048, columns, 0)
    weight = (torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)) / columns**0.5).to(device)
    found = _statistics(inputs)
    assert found.gram is not None
    matrix = Matrix("it", weight, Statistics(2048, found.sums, found.squared_norms, found.gram.to(device)))
    method = parse_method("sparsegpt", "50%", "uniform", "none")
    factor = inverse_factor(matrix.inputs, 0.01)  # both need it
    prune_matrix(method, matrix, weight.numel() // 2)  # warm
    started = time.perf_counter()
    pruned = prune_matrix(method, matrix, weight.numel() // 2)
    blocked = time.perf_counter() - started
    started = time.perf_counter()
    reference = column_loop(weight, factor, 128)
    loop = time.perf_counter() - started
    return blocked, loop, float((pruned.weight * pruned.mask - reference).norm() / reference.norm())


def column_loop(weight: Tensor, factor: Tensor, block: int) -> Tensor:
    """Algorithm 1 of SparseGPT as it is written, at 50 % of every row: each column updates all that come after it."""
    found = weight.clone()
    columns = weight.shape[1]
    for column in range(columns):
        if column % block == 0:
            stop = min(column + block, columns)
            scores = (found[:, column:stop] / factor.diagonal()[column:stop]).square()
            count = columns // 2 * stop // columns - columns // 2 * column // columns
            chosen = torch.zeros_like(scores, dtype=torch.bool)
            chosen.scatter_(1, scores.sort(dim=1, stable=True).indices[:, :count], True)
        error = found[:, column] * chosen[:, column % block] / factor[column, column]
        found[:, column:] -= error.unsqueeze(1) * factor[column, column:]
        found[:, column] *= ~chosen[:, column % block]
    return found
