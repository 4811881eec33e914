"""Stage ``prune``: masks of every matrix, from the dense statistics alone or block by block on pruned inputs."""

from __future__ import annotations

from tqdm import tqdm

from freelunch.plan.specs import PrunedSpec
from freelunch.results.stage import Stage
from freelunch.stages.pruning import PruningJob, summary


def make(stage: Stage) -> None:
    """Run the stage: per block a file of bit-packed masks and one of changed tensors; the sparsity of every matrix."""
    spec = stage.spec
    assert isinstance(spec, PrunedSpec)
    job = PruningJob(stage, spec)
    blocks = tqdm(sorted(set(job.matrices.blocks.values())), desc=f"pruning with {spec.criterion}", unit="block")
    if spec.prune_inputs == "dense":
        records = [job.write(index, job.pruner.block(index, job.load)) for index in blocks]
    else:
        # imported here: with dense inputs no network is built, and transformers need not be loaded
        from freelunch.stages.prefix import PrunedPrefix

        prefix = PrunedPrefix(stage, spec, job)
        records = []
        for index in blocks:
            if records:
                prefix.advance(index - 1)
            records += prefix.prune(index)
    stage.finish(**summary(records))
