"""Stage ``repaired``: rows of a pruned model's matrices, scaled by cached statistics; no network is run."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from freelunch.engine.device import DTYPES
from freelunch.engine.overlays import Masked, TensorSource
from freelunch.errors import FreelunchError, naming
from freelunch.plan.specs import RepairedSpec
from freelunch.pruning.hessian import moments
from freelunch.pruning.matrix import Statistics, finite
from freelunch.recover.repair import Mode, scales
from freelunch.results.stage import Stage
from freelunch.stages.network import MASKS, TRAINED, open_source
from freelunch.stages.pruning import DenseStatistics, read_gram


def make(stage: Stage) -> None:
    """Run the stage: per block a file of scaled weights; the scales of every matrix in short.

    A scale applies to ``W x``: biases are left alone, and so are norms.

    Raises:
        FreelunchError: a weight, a statistic or a result is NaN or infinite, or a pruned weight is not zero (names the
            matrix).
    """
    spec = stage.spec
    assert isinstance(spec, RepairedSpec)
    dense, masks = stage.tensors(spec.base), stage.tensors(spec.pruned, MASKS)
    pruned, masked = open_source(stage, spec.base, [spec.pruned]), Masked(dense, masks)
    gram = partial(read_gram, stage.open(spec.grams), stage.execution.device)
    statistics = DenseStatistics(stage.open(spec.pruned.dense), gram)
    dtype = DTYPES[spec.base.source.dtype]
    about: dict[str, dict[str, float]] = {}
    for index, leaders in tqdm(statistics.leaders.items(), desc=f"repair by {spec.repair}", unit="block"):
        repaired: dict[str, Tensor] = {}
        for matrix in leaders:
            name, inputs = f"{matrix}.weight", statistics.of(matrix, gram=True)
            with naming(matrix):
                repaired[name], about[matrix] = _repaired(name, dense, pruned, inputs, spec.repair, dtype)
                mask = masked.mask(name)
                revived = 0 if mask is None else int(repaired[name][~mask].count_nonzero())
                if revived:
                    raise FreelunchError(f"{revived} pruned weights are not zero")
        stage.write_tensors(f"{TRAINED}{index:03d}.safetensors", repaired)
    sparsity = stage.open(spec.pruned).manifest["achieved_sparsity"]
    stage.finish(achieved_sparsity=sparsity, scales=about)


def _repaired(
    name: str, dense: TensorSource, pruned: TensorSource, inputs: Statistics, mode: Mode, dtype: torch.dtype
) -> tuple[Tensor, dict[str, Any]]:
    """A scaled weight on the CPU in the model's dtype, and its scales in short."""
    assert inputs.gram is not None
    # rounded to the model's dtype first: what is measured is what is run
    weight, sparse = (source.load(name).to(dtype).to(inputs.gram.device).float() for source in (dense, pruned))
    found = scales(moments(weight, sparse, inputs), mode)
    scaled = (sparse * found.float().unsqueeze(1)).to(dtype)
    if not finite(scaled):
        raise FreelunchError(f"its repaired weights do not fit into {dtype}")
    about = {"mean": float(found.mean()), "min": float(found.min()), "max": float(found.max())}
    return scaled.cpu(), about
