"""What suites take, and what fits where: the tables of ``python -m freelunch plan`` and ``memory``."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas as pd
from pandas import DataFrame

from freelunch.costs import Cost, cost
from freelunch.errors import FreelunchError
from freelunch.plan.config import Config, PerplexityTask, SuiteConfig, ZeroShotTask
from freelunch.plan.plan import Plan, make_plan, walk
from freelunch.plan.spec import STAGES, Spec
from freelunch.plan.specs import EvaluationSpec, ModelSpec, PrunedSpec, ReconstructedSpec
from freelunch.plan.validity import check_name

TFLOPS = 396.0
"""Default of what a GPU does: 40 % of the 989 TFLOP/s of dense bfloat16 products that the data sheet of an H100 SXM
gives (1,979 with sparsity). 38 to 43 % is what Llama 3 was trained at (arXiv:2407.21783, table 4)."""
GIB = 2**30


def budget(plan: Plan, suite: str, match: str = "*") -> DataFrame:
    """The stage runs of a suite, or of its runs whose names match a pattern with ``*``, ``?`` and ``[…]``.

    Each counts for the first run that needs it, so what runs take adds up to what the suite takes.

    Returns:
        A row per stage run: its ``stage``, the ``run`` and ``model`` that it counts for, whether other runs need it too
        (``shared``), whether it is ``done``, ``operations``, and bytes: ``disk``, ``host``, ``device``.
    """
    runs = [run for run in plan.runs[suite] if fnmatchcase(run.name, match)]
    needed = [plan.needed_by(run) for run in runs]
    uses = Counter(manifest for specs in needed for manifest in specs)
    rows: dict[str, dict[str, Any]] = {}
    for run, specs in zip(runs, needed, strict=True):
        for manifest, spec in specs.items():
            if manifest in rows:
                continue
            taken = cost(spec, plan.config)
            # shards do the work of a reconstruction that is split, and their files become its own
            split = isinstance(spec, ReconstructedSpec) and bool(spec.split(plan.config.execution.shards))
            rows[manifest] = {
                "run": run.name, "model": run.model, "stage": spec.stage, "shared": uses[manifest] > 1,
                "done": Path(manifest).exists(), "operations": 0.0 if split else taken.operations,
                "disk": 0.0 if split else taken.disk, "host": taken.host, "device": taken.device,
            }  # fmt: skip
    columns = ["run", "model", "stage", "shared", "done", "operations", "disk", "host", "device"]
    return DataFrame(list(rows.values()), columns=columns)


def summed(jobs: DataFrame, by: Any) -> DataFrame:
    """What stage runs take together, by some columns: sums, and the most memory of any."""
    return jobs.groupby(by, sort=False).agg(
        jobs=("stage", "size"), done=("done", "sum"), operations=("operations", "sum"), disk=("disk", "sum"),
        host=("host", "max"), device=("device", "max"),
    )  # fmt: skip


def hours(operations: Any, tflops: float) -> Any:
    """Hours on a GPU that does so many 10¹² operations a second, all the time."""
    return operations / (tflops * 1e12) / 3600


def warnings(jobs: DataFrame, root: Path) -> list[str]:
    """What is more than the machine has: free disk under ``root``, and memory (of the host; GPUs are not looked at)."""
    free, memory = shutil.disk_usage(root).free / GIB, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    disk, host = float(jobs["disk"].sum()) / GIB, float(jobs["host"].max()) / GIB
    lines = {
        f"the results take {disk:,.0f} GiB of disk, {free:,.0f} are free here": disk > free,
        f"the largest job takes {host:,.0f} GiB of memory, this machine has {memory:,.0f}": host > memory,
    }
    return [line for line, exceeded in lines.items() if exceeded]


def as_text(jobs: DataFrame, tflops: float, states: Mapping[str, str] | None = None) -> str:
    """Tables by model if there are several, and by stage; by run too if the ``states`` of runs are given."""
    stages = pd.concat([summed(jobs, "stage").reindex(list(STAGES)).dropna(), summed(jobs, lambda row: "total")])
    parts = [
        _table("stage", pd.concat([stages[["jobs", "done"]].astype(int), _units(stages, tflops)], axis="columns")),
        f"{jobs['run'].nunique()} runs. Sums over jobs, 2 operations per multiply-add; memory is that of the largest "
        "job.\n"
        "GPU GiB: memory of a GPU, 0 where jobs are planned for the CPU (execution.device), whose memory it is then.\n"
        f"GPU hours: operations at {tflops:g} TFLOP/s (--tflops), an estimate without downloads, reading and idling.",
    ]
    if jobs["model"].nunique() > 1:
        models = _units(summed(jobs, "model"), tflops)
        models.insert(0, "runs", jobs.groupby("model", sort=False)["run"].nunique())
        parts.insert(0, _table("model", models))
    if states is not None:
        runs = _units(summed(jobs, "run"), tflops)
        # stages that it shares are in its numbers too; those that an earlier run in the list has are not
        shared = jobs["operations"].where(jobs["shared"], 0).groupby(jobs["run"], sort=False).sum()
        parts.insert(0, _table("run", runs.assign(shared=hours(shared, tflops), state=runs.index.map(states))))
        parts[-1] += "\nA stage that several runs need counts for the first of them; shared: GPU hours of such stages."
    return "\n\n".join(parts)


def as_csv(jobs: DataFrame, tflops: float, done: Mapping[str, bool]) -> str:
    """One line per run, all digits; what it shares with other runs and is the first to need in columns of its own."""
    names = {
        "operations": "operations", "gpu_hours": "gpu_hours", "disk": "disk_gib", "host": "memory_gib",
        "device": "gpu_gib",
    }  # fmt: skip
    table = summed(jobs, ["run", "model"])[[]].reset_index()
    table["done"] = table["run"].map(done).astype(int)
    for shared, prefix in ((False, ""), (True, "shared_")):
        needs = summed(jobs[jobs["shared"] == shared], "run").reindex(table["run"]).fillna(0.0).reset_index(drop=True)
        needs["gpu_hours"] = hours(needs["operations"], tflops)
        needs[["disk", "host", "device"]] /= GIB
        table = table.join(needs[list(names)].rename(columns=names).add_prefix(prefix))
    return table.to_csv(index=False, lineterminator="\n")


def _units(needs: DataFrame, tflops: float) -> DataFrame:
    """Sums in the units that are shown."""
    gib = {"disk": "disk GiB", "host": "memory GiB", "device": "GPU GiB"}
    table = needs[["operations"]].assign(**{"GPU hours": hours(needs["operations"], tflops)})
    return table.join((needs[list(gib)] / GIB).rename(columns=gib))


def _hours(value: float) -> str:
    return "<0.01" if 0 < value < 0.01 else f"{value:,.2f}"


_FORMATS: dict[str, Callable[[Any], str]] = {
    "operations": "{:.2e}".format, "GPU hours": _hours, "shared": _hours, "disk GiB": "{:,.3f}".format,
    "memory GiB": "{:.2f}".format, "GPU GiB": "{:.2f}".format,
}  # fmt: skip


def _table(name: str, table: DataFrame) -> str:
    formats = {column: _FORMATS[column] for column in table.columns if column in _FORMATS}
    return table.rename_axis(index=None, columns=name).to_string(formatters=formats)


# --- what fits -------------------------------------------------------------------------------------------------------

GPUS, HOSTS = (24, 48, 80), (64, 128)
"""GiB of common cards and hosts."""
USABLE = 0.9
"""Share of a memory that may be planned with: of a card, CUDA itself and gaps take the rest; of a host, the system."""
_WINDOWS: tuple[str | int, ...] = ("matrix", "attention_mlp", "block", 2, 4, 8)


def peaks(config: Config, suite: str, models: Sequence[str]) -> dict[str, dict[str, Cost]]:
    """Costs by stage and by model, on an accelerator; windows and criteria vary, all else is as the suite's defaults.

    Args:
        suite: whose defaults are taken, and its first perplexity.
        models: names of models of the config.

    Raises:
        FreelunchError: the suite or a model is not in the config, or the suite measures no perplexity.
    """
    check_name("suite", suite, config.suites)
    for model in models:
        check_name("model", model, config.models)
    measured = [task for task in config.suites[suite].evaluate if isinstance(task, PerplexityTask)]
    if not measured:
        raise FreelunchError(f"suites.{suite}.evaluate: measures no perplexity")
    varied = SuiteConfig(
        defaults=config.suites[suite].defaults | {"model": list(models), "recovery": "none", "criterion": "wanda"},
        runs=[{"criterion": ["wanda", "sparsegpt"]}, {"recovery": "reconstruct", "window": list(_WINDOWS)}],
        evaluate=(measured[0].model_copy(update={"only": {}}),),
    )
    execution = config.execution.model_copy(update={"device": "cuda"})
    changes = {"suites": {"memory": varied}, "default_suite": "memory", "execution": execution}
    planned = config.model_copy(update=changes)
    costs: dict[str, dict[str, Cost]] = {}
    for spec in make_plan(planned).needed("memory"):
        model = next((above.model for above in walk(spec) if isinstance(above, ModelSpec)), "")
        for label, each in _labelled(spec):
            costs.setdefault(label, {}).setdefault(model, cost(each, planned))
    windows = (_label(window) for window in _WINDOWS)
    order = ("dense", "grams", "prune (wanda)", "prune (sparsegpt)", *windows, "perplexity", "zero-shot")
    return {label: costs[label] for label in order}


def _label(window: str | int) -> str:
    return f"reconstruct ({window})" if isinstance(window, str) else f"reconstruct ({window} blocks)"


def _labelled(spec: Spec) -> Iterator[tuple[str, Spec]]:
    """The stages that are shown, by what they are called."""
    if spec.stage in ("dense", "grams"):
        yield spec.stage, spec
    elif isinstance(spec, PrunedSpec):
        yield f"prune ({spec.criterion})", spec
    elif isinstance(spec, ReconstructedSpec):
        yield _label(spec.window), spec
    elif isinstance(spec, EvaluationSpec) and spec.overlays:
        yield "perplexity", spec
        asked = ZeroShotTask(metric="zero_shot", tasks=("hellaswag",))
        yield "zero-shot", EvaluationSpec(subject=spec.subject, data=(), tasks=(asked,))


def as_markdown(costs: Mapping[str, Mapping[str, Cost]]) -> str:
    """Two tables: GiB by stage, and what fits where."""
    models = list(next(iter(costs.values())))
    lines = ["GiB of the GPU + of the host:", "", _row(["stage", *models]), _row(["---", *("---:" for _ in models)])]
    for label, of_models in costs.items():
        lines.append(
            _row([label, *(f"{each.device / GIB:.1f} + {each.host / GIB:.1f}" for each in of_models.values())])
        )
    lines += ["", f"What fits, with {USABLE:.0%} of a memory to plan with:", ""]
    lines += [_row(["memory", *models]), _row(["---", *("---" for _ in models)])]
    for kind, attribute, size in [*(("GPU", "device", size) for size in GPUS), *(("host", "host", n) for n in HOSTS)]:
        row = [f"{kind} of {size} GB"]
        for model in models:
            without = [label for label in costs if getattr(costs[label][model], attribute) > USABLE * size * GIB]
            row.append(f"all but {', '.join(without)}" if without else "all")
        lines.append(_row(row))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
