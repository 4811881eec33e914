"""What the runs of a suite will take: operations, GPU hours, disk and memory, of each run and of all together."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from .costs import Cost, cost, memory
from .plan.config import Config
from .plan.plan import Plan, Run
from .plan.spec import STAGES, Spec
from .plan.specs import ReconstructedSpec

TFLOPS = 396.0
"""Default of what a GPU does: 40 % of the 989 TFLOP/s of dense bfloat16 products that the data sheet of an H100 SXM
gives (1,979 with sparsity). 38 to 43 % is what Llama 3 was trained at (arXiv:2407.21783, table 4)."""


@dataclass(frozen=True)
class Need:
    """What some jobs take together: operations, bytes that stay on disk, and bytes of memory, of the host and of an
    accelerator, of the largest of them."""

    jobs: int = 0
    done: int = 0
    operations: float = 0.0
    disk: float = 0.0
    memory: float = 0.0
    device: float = 0.0

    def __add__(self, other: Need) -> Need:
        return Need(
            self.jobs + other.jobs,
            self.done + other.done,
            self.operations + other.operations,
            self.disk + other.disk,
            max(self.memory, other.memory),
            max(self.device, other.device),
        )

    def hours(self, tflops: float) -> float:
        """Hours on a GPU that does this many 10¹² operations a second, all the time."""
        return self.operations / (tflops * 1e12) / 3600


@dataclass(frozen=True)
class RunNeed:
    """What a run takes: in stages of its own, and in stages that other runs need too and that it is the first to need.

    Each stage counts for one run, so the needs of all runs add up to that of the suite.
    """

    run: Run
    own: Need
    shared: Need


@dataclass(frozen=True)
class Budget:
    """Needs of some runs of a suite, and of their stages."""

    runs: list[RunNeed]
    stages: dict[str, Need]

    @property
    def total(self) -> Need:
        return sum(self.stages.values(), Need())

    @property
    def models(self) -> dict[str, tuple[int, Need]]:
        """Runs and needs by model."""
        found: dict[str, tuple[int, Need]] = {}
        for each in self.runs:
            name = each.run.model
            count, need = found.get(name, (0, Need()))
            found[name] = (count + 1, need + each.own + each.shared)
        return found


def budget(plan: Plan, suite: str, match: str = "*") -> Budget:
    """The budget of the runs of a suite whose names match a pattern with ``*``, ``?`` and ``[…]``."""
    runs = [run for run in plan.runs[suite] if fnmatchcase(run.name, match)]
    needed = [plan.needed_by(run) for run in runs]
    uses = Counter(manifest for specs in needed for manifest in specs)
    counted: set[str] = set()
    stages: dict[str, Need] = {}
    listed = []
    for run, specs in zip(runs, needed, strict=True):
        own = shared = Need()
        for manifest, spec in specs.items():
            if manifest in counted:
                continue
            counted.add(manifest)
            need = _need(plan.config, spec)
            stages[spec.stage] = stages.get(spec.stage, Need()) + need
            if uses[manifest] == 1:
                own += need
            else:
                shared += need
        listed.append(RunNeed(run, own, shared))
    return Budget(listed, {stage: stages[stage] for stage in STAGES if stage in stages})


def _need(config: Config, spec: Spec) -> Need:
    found, device = cost(config, spec), memory(config, spec).device
    if isinstance(spec, ReconstructedSpec) and spec.split(config.execution.shards):
        found = Cost(memory=found.memory)  # its shards do the work, and their files become its own
    return Need(1, int(Path(spec.manifest).exists()), found.operations, found.disk, found.memory, device)


def warnings(need: Need, root: Path) -> list[str]:
    """What is more than the machine has: free disk under ``root``, and memory (of the host; GPUs are not looked at)."""
    free, memory = shutil.disk_usage(root).free, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = []
    if need.disk > free:
        found.append(f"the results take {need.disk / 2**30:,.0f} GiB of disk, {free / 2**30:,.0f} are free here")
    if need.memory > memory:
        found.append(
            f"the largest job takes {need.memory / 2**30:,.0f} GiB of memory, this machine has {memory / 2**30:,.0f}"
        )
    return found
