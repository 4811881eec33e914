"""Stage ``retrained``: train a pruned model as a whole; a killed job goes on from its last checkpoint."""

from __future__ import annotations

from torch import Tensor

from freelunch.engine.blocks import matrices
from freelunch.engine.overlays import Masked
from freelunch.plan.specs import RetrainedSpec
from freelunch.recover.retrain import retrain as train
from freelunch.recover.training import totals
from freelunch.recover.windows import check_targets
from freelunch.results.checkpoint import Checkpoint
from freelunch.results.stage import Stage
from freelunch.stages.dense import SPLITS, KeptStates
from freelunch.stages.network import MASKS, open_network, open_source


def make(stage: Stage) -> None:
    """Run the stage: a file of trained tensors per block."""
    spec = stage.spec
    assert isinstance(spec, RetrainedSpec)
    crops = stage.tensors(spec.calibration)
    tokens = {split: crops.load(split) for split in SPLITS}
    dense: dict[str, Tensor] = {}
    if spec.dense is not None:
        kept = {split: KeptStates(stage.open(spec.dense), split) for split in SPLITS}
        dense = {split: states[max(states)] for split, states in kept.items()}
    network = open_network(stage, spec.base, open_source(stage, spec.base, [spec.pruned]))
    check_targets((name for block in network.blocks for name in matrices(block)), spec.training.targets)
    masks = Masked(stage.tensors(spec.base), stage.tensors(spec.pruned, MASKS))
    keeper = Checkpoint(stage)
    execution = stage.execution
    result = train(
        network, tokens, dense, masks.mask, spec.training, keeper, execution.checkpointing, execution.compile
    )
    for index in range(len(network.blocks)):
        prefix = f"{network.block_name(index)}."
        found = {name: tensor for name, tensor in result.tensors.items() if name.startswith(prefix)}
        stage.write_tensors(f"window-{index:03d}.safetensors", found)
    if result.fit.adapters:
        stage.write_tensors("adapter.safetensors", result.fit.adapters)
    stage.finish(
        achieved_sparsity=stage.open(spec.pruned).manifest["achieved_sparsity"],
        windows=[{"window": "model", **result.record()}],
        **totals([result.record()], spec.calibration.length),
        train_seconds=round(keeper.spent + result.fit.seconds, 3),
        resumed_at=keeper.resumed_at,
    )
