"""Stage ``prune``: masks of every matrix from the dense weights and statistics; no forward pass."""

from __future__ import annotations

from safetensors.torch import save_file
from tqdm import tqdm

from .. import criteria
from ..allocations import uniform
from ..artifacts import Artifact, read_json
from ..blocks import matrices
from ..overlays import SafetensorsFiles, pack
from ..patterns import parse_pattern
from ..pruning import prune_matrix
from ..specs import PrunedSpec
from ..statistics import Statistics
from .network import open_network
from .stage import Stage


def prune(stage: Stage) -> None:
    """Run the stage: one file of bit-packed masks per block, and the achieved sparsity of every matrix."""
    spec = stage.spec
    assert isinstance(spec, PrunedSpec)
    network = open_network(stage, spec.dense.calibration.model)
    statistics = read_statistics(stage.open(spec.dense))
    shapes = {
        f"{network.block_name(index)}.{name}": (matrix.weight.shape[0], matrix.weight.shape[1])
        for index, block in enumerate(network.blocks)
        for name, matrix in matrices(block).items()
    }
    allocated = uniform(parse_pattern(spec.pattern), shapes)
    for name, pattern in allocated.items():
        pattern.check(*shapes[name], name)

    method = criteria.named(spec.criterion)
    sparsity: dict[str, float] = {}
    pruned = 0
    for index, block in enumerate(tqdm(network.blocks, desc=f"pruning with {spec.criterion}", unit="block")):
        masks = {}
        for matrix in matrices(block):
            name = f"{network.block_name(index)}.{matrix}"
            weight = network.source.load(f"{name}.weight").to(network.dtype).to(network.device)
            mask = prune_matrix(name, weight, statistics[name], method, allocated[name]).cpu()
            masks[f"{name}.weight"] = pack(mask)
            count = mask.numel() - int(mask.sum())
            sparsity[name] = count / mask.numel()
            pruned += count
        with stage.writing(f"masks-{index:03d}.safetensors") as path:
            save_file(masks, path)
    total = sum(rows * columns for rows, columns in shapes.values())
    stage.finish(achieved_sparsity=pruned / total, matrix_sparsity=sparsity)


def read_statistics(dense: Artifact) -> dict[str, Statistics]:
    """Statistics by full matrix name, from a dense cache."""
    about = read_json(dense.file("statistics.json"))
    sums = SafetensorsFiles([dense.file("statistics.safetensors")])
    return {name: Statistics(about["tokens"], sums.load(leader)) for name, leader in about["inputs"].items()}
