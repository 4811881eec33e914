"""Stage ``grams``: Gram matrices of the inputs of every matrix of the dense model, apart from the statistics that are
cheap, since they are large and only some methods look at them.
"""

from __future__ import annotations

from tqdm import tqdm

from freelunch.engine.states import Prefix, States
from freelunch.plan.specs import GramsSpec
from freelunch.results.stage import Stage
from freelunch.stages.dense import KeptStates
from freelunch.stages.network import open_network


def make(stage: Stage) -> None:
    """Run the stage: a file per block, with one matrix for all that share an input, by the name of the first."""
    spec = stage.spec
    assert isinstance(spec, GramsSpec)
    calibration = spec.dense.calibration
    network = open_network(stage, calibration.model)
    cache = stage.open(spec.dense)
    batch = max(1, cache.manifest["execution"]["stream_tokens"] // calibration.length)
    states = States(network, KeptStates(cache, "calibration"), batch, stage.folder)
    for index in tqdm(range(len(network.blocks)), desc="Gram matrices", unit="block"):
        states.drop_before(2 * index)
        found = Prefix(states.at(2 * index), batch, stage.folder).statistics(network, index, gram=True)
        first = {id(statistics): name for name, statistics in reversed(found.items())}
        by_name = {name: found[name].gram.cpu() for name in first.values()}  # type: ignore[union-attr]
        stage.write_tensors(spec.file(index), by_name)
    stage.finish(tokens=calibration.sequences * calibration.length)
