"""``python -m freelunch``: look at the plan of a ``config.yaml``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .config import parse_config, read_yaml
from .costs import cost
from .errors import FreelunchError, suggest
from .plan import Plan, make_plan
from .specs import STAGES, ExportSpec, ModelSpec


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="freelunch", description=__doc__.split(": ")[1])
    parser.add_argument("--config", type=Path, action="append", help="config file; more than one are merged in order")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("plan", help="list the runs of a suite, what is done, and what each stage will need")
    show.add_argument("suite", nargs="?", help="name of the suite (default: default_suite)")
    show.add_argument("--exports", action="store_true", help="list the targets that export its pruned models instead")
    options = parser.parse_args(arguments)
    try:
        (print_exports if options.exports else print_plan)(load(options.config or [Path("config.yaml")]), options.suite)
    except FreelunchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def load(paths: list[Path]) -> Plan:
    """The plan of a config, later files merged over earlier ones as Snakemake's ``--configfile`` does."""
    merged: dict[str, object] = {}
    for path in paths:
        raw = read_yaml(path)
        if not isinstance(raw, dict):
            raise FreelunchError(f"{path}: is not a mapping of sections")
        _merge(merged, raw)
    return make_plan(parse_config(merged))


def _merge(into: dict[str, object], other: dict[str, object]) -> None:
    for key, value in other.items():
        mine = into.get(key)
        if isinstance(mine, dict) and isinstance(value, dict):
            _merge(mine, value)
        else:
            into[key] = value


def print_exports(plan: Plan, suite: str | None) -> None:
    """Print what to ask Snakemake for, to have a network of a suite as a directory of its own."""
    for run in plan.runs[_suite(plan, suite)]:
        if not isinstance(run.evaluation.subject, ModelSpec):
            print(ExportSpec(subject=run.evaluation.subject).manifest)


def _suite(plan: Plan, suite: str | None) -> str:
    name = suite or plan.config.default_suite
    if name not in plan.runs:
        raise FreelunchError(f"there is no suite {name!r}; {suggest(name, plan.runs)}")
    return name


def print_plan(plan: Plan, suite: str | None) -> None:
    """Print the runs of a suite with their keys, and per stage what is done and what it will need."""
    name = _suite(plan, suite)
    print(f"suite {name}: {plan.config.suites[name].description or 'no description'}\n")
    runs = plan.runs[name]
    width = max((len(run.name) for run in runs), default=0)
    for run in runs:
        done = "done" if Path(run.evaluation.manifest).exists() else "to do"
        print(f"  {run.name:{width}}  {done}")
    print(f"\n{'stage':12} {'jobs':>5} {'done':>5} {'disk GiB':>10} {'memory GiB':>11} {'operations':>11}")
    total = [0.0, 0.0, 0.0]
    specs = plan.needed(name)
    for stage in STAGES:
        mine = [spec for spec in specs if spec.stage == stage]
        if not mine:
            continue
        costs = [cost(plan.config, spec) for spec in mine]
        disk, memory = sum(c.disk for c in costs) / 2**30, max(c.memory for c in costs) / 2**30
        operations = sum(c.operations for c in costs)
        finished = sum(Path(spec.manifest).exists() for spec in mine)
        print(f"{stage:12} {len(mine):5} {finished:5} {disk:10.3f} {memory:11.2f} {operations:11.2e}")
        total = [total[0] + disk, max(total[1], memory), total[2] + operations]
    print(f"{'total':12} {len(specs):5} {'':5} {total[0]:10.3f} {total[1]:11.2f} {total[2]:11.2e}")
    print("\ndisk and operations: sums over jobs, 2 per multiply-add; memory: that of the largest job")


if __name__ == "__main__":
    sys.exit(main())
