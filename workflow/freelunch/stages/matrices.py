"""The matrices of every block of a model as the dense pass saw them: in the order of calls, and who shares inputs."""

from __future__ import annotations

from freelunch.errors import FreelunchError
from freelunch.plan.specs import ReconstructedSpec
from freelunch.prune.structured import find_units, grouped
from freelunch.recover.windows import BlockMatrices
from freelunch.results.artifacts import read_json
from freelunch.results.stage import Stage
from freelunch.stages.pruning import heads_of


def find_matrices(stage: Stage, spec: ReconstructedSpec) -> list[BlockMatrices]:
    """Names within each block, for windows of matrices.

    Raises:
        FreelunchError: the window is ``key_up``, and keys and the MLP's channels are not made by matrices of their own.
    """
    leaders = read_json(stage.open(spec.dense).file("statistics.json"))["leaders"]
    blocks = [_within(dict(pairs), index) for index, pairs in enumerate(leaders)]
    if spec.window != "key_up":
        return [BlockMatrices(tuple(inside)) for inside in blocks]
    source, heads = stage.tensors(spec.base), heads_of(stage.open(spec.base))
    found: list[BlockMatrices] = []
    for inside, pairs in zip(blocks, leaders, strict=True):
        shapes = {name: source.shape(f"{full}.weight") for name, (full, _) in zip(inside, pairs, strict=True)}
        try:
            find_units(inside, shapes, heads)
        except FreelunchError:
            parts = " -> ".join("/".join(part) for part in grouped(inside))
            raise FreelunchError(
                "window key_up needs matrices of their own for q, k, v and o, and then an MLP; block "
                f"{len(found)} of {spec.base.model} calls {parts}; use window matrix or block"
            ) from None
        attention, _, mlp, _ = grouped(inside)
        # queries, keys and values are called in this order, and a gate before what it gates
        found.append(BlockMatrices(tuple(inside), attention[1], mlp[-1]))
    return found


def _within(leaders: dict[str, str], block: int) -> dict[str, str]:
    """The same by names within the block: what follows its number."""
    return {name.split(f".{block}.", 1)[1]: leader.split(f".{block}.", 1)[1] for name, leader in leaders.items()}
