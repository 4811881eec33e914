"""``python -m freelunch``: look at the plan of a ``config.yaml``, run one part of it, check the machine."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from freelunch.budget import TFLOPS, as_csv, as_markdown, as_text, budget, peaks, warnings
from freelunch.commands import run_one
from freelunch.doctor import examine
from freelunch.errors import FreelunchError, suggest
from freelunch.job import foreseen
from freelunch.plan.config import parse_config
from freelunch.plan.plan import Plan, make_plan
from freelunch.plan.specs import ExportSpec, ModelSpec
from freelunch.plan.yaml_files import read_yaml


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="freelunch", description=__doc__.split(": ")[1])
    parser.add_argument("--config", type=Path, action="append", help="config file; more than one are merged in order")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("plan", help="what a suite will take: operations, GPU hours, disk and memory")
    show.add_argument("suite", nargs="?", help="name of the suite (default: default_suite)")
    show.add_argument("--match", default="*", metavar="PATTERN", help="only runs whose names match, such as 'opt-*'")
    rate = "10^12 operations a second that a GPU does (default: %(default)g, 40 %% of an H100's peak)"
    show.add_argument("--tflops", type=float, default=TFLOPS, metavar="N", help=rate)
    instead = show.add_mutually_exclusive_group()
    instead.add_argument("--runs", action="store_true", help="list every run as well, and whether it is done")
    instead.add_argument("--csv", action="store_true", help="write the list of runs as CSV instead")
    instead.add_argument("--targets", action="store_true", help="list what to ask Snakemake for, to have these runs")
    instead.add_argument("--exports", action="store_true", help="the same, to have their networks as models")
    one = commands.add_parser("run", help="make one result of the plan, and what it lacks, without Snakemake")
    one.add_argument("name", help="name, key, label, folder or manifest of a result")
    one.add_argument("--dry-run", action="store_true", help="list what would run")
    sizes = commands.add_parser("memory", help="memory of models by stage and window, and what fits on which GPU")
    sizes.add_argument("suite", nargs="?", help="whose defaults are taken (default: default_suite)")
    of = "model of the config, may be given more than once (default: those of the suite)"
    sizes.add_argument("--model", action="append", metavar="NAME", help=of)
    check = commands.add_parser("doctor", help="check whether this machine can run a suite")
    check.add_argument("suite", nargs="?", help="name of the suite (default: default_suite)")
    options = parser.parse_args(arguments)
    if options.command != "plan":
        return _other(options)
    if not 0 < options.tflops < float("inf"):
        parser.error("--tflops must be above 0")
    try:
        plan = load(options.config or [Path("config.yaml")])
        name = _suite(plan, options.suite)
        jobs = budget(plan, name, options.match)
        if jobs.empty:
            raise FreelunchError(f"no run of suite {name} matches {options.match!r}; --runs lists them")
    except FreelunchError as error:
        print(error, file=sys.stderr)
        return 1
    runs = [run for run in plan.runs[name] if run.name in set(jobs["run"])]
    done = {run.name: Path(run.evaluation.manifest).exists() for run in runs}
    if options.targets:
        print(*(run.evaluation.manifest for run in runs), sep="\n")
    elif options.exports:
        subjects = [run.subject for run in runs if run.subject is not None]
        print(*(ExportSpec(subject=each).manifest for each in subjects if not isinstance(each, ModelSpec)), sep="\n")
    elif options.csv:
        print(as_csv(jobs, options.tflops, done), end="")
    else:
        print(f"suite {name}: {plan.config.suites[name].description or 'no description'}\n")
        states = {run: "done" if is_done else "to do" for run, is_done in done.items()}
        print(as_text(jobs, options.tflops, states if options.runs else None))
        print(*(f"warning: {warning}\n" for warning in warnings(jobs, Path())), sep="", end="")
    return 0


def _other(options: argparse.Namespace) -> int:
    """The commands that do more than to look at the plan."""
    try:
        plan = load(options.config or [Path("config.yaml")])
        if options.command == "run":
            run_one(plan, options.name, Path(), options.dry_run)
            return 0
        if options.command == "memory":
            suite = _suite(plan, options.suite)
            models = options.model or list(dict.fromkeys(run.model for run in plan.runs[suite] if run.subject))
            print(as_markdown(peaks(plan.config, suite, models)))
            return 0
        found = list(examine(plan, _suite(plan, options.suite), Path()))
    except Exception as error:
        line = foreseen(error)
        if line is None:
            raise
        print(line, file=sys.stderr)
        return 1
    print(*found, sep="\n")
    return int(any(each.level == "problem" for each in found))


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


def _suite(plan: Plan, suite: str | None) -> str:
    name = suite or plan.config.default_suite
    if name not in plan.runs:
        raise FreelunchError(f"there is no suite {name!r}; {suggest(name, plan.runs)}")
    return name


def run() -> None:
    """The command itself."""
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status)


if __name__ == "__main__":
    run()
