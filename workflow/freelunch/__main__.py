"""``python -m freelunch``: look at the plan of a ``config.yaml``, run one part of it, check the machine."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from freelunch.budget import TFLOPS, as_csv, as_markdown, as_text, budget, peaks, warnings
from freelunch.doctor import examine
from freelunch.errors import FreelunchError, suggest
from freelunch.job import foreseen
from freelunch.plan.config import parse_config
from freelunch.plan.plan import Plan, make_plan
from freelunch.plan.spec import Spec
from freelunch.plan.specs import ExportSpec, ModelSpec
from freelunch.plan.yaml_files import read_yaml
from freelunch.runner import Runner


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "plan" and not 0 < options.tflops < float("inf"):
        parser.error("--tflops must be above 0")
    try:
        plan = load(options.config or [Path("config.yaml")])
        if options.command == "run":
            run_one(plan, options.name, Path(), options.dry_run)
            return 0
        suite = options.suite or plan.config.default_suite
        if suite not in plan.runs:
            raise FreelunchError(f"there is no suite {suite!r}; {suggest(suite, plan.runs)}")
        if options.command == "plan":
            show(plan, suite, options)
            return 0
        if options.command == "memory":
            models = options.model or list(dict.fromkeys(run.model for run in plan.runs[suite] if run.subject))
            print(as_markdown(peaks(plan.config, suite, models)))
            return 0
        findings = list(examine(plan, suite, Path()))
    except Exception as error:
        line = foreseen(error)
        if line is None:
            raise
        print(line, file=sys.stderr)
        return 1
    print(*findings, sep="\n")
    return int(any(finding.level == "problem" for finding in findings))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="freelunch", description=__doc__.split(": ")[1])
    parser.add_argument("--config", type=Path, action="append", help="config file; more than one are merged in order")
    commands = parser.add_subparsers(dest="command", required=True)
    plan = commands.add_parser("plan", help="what a suite will take: operations, GPU hours, disk and memory")
    plan.add_argument("suite", nargs="?", help="name of the suite (default: default_suite)")
    plan.add_argument("--match", default="*", metavar="PATTERN", help="only runs whose names match, such as 'opt-*'")
    rate = "10^12 operations a second that a GPU does (default: %(default)g, 40 %% of an H100's peak)"
    plan.add_argument("--tflops", type=float, default=TFLOPS, metavar="N", help=rate)
    instead = plan.add_mutually_exclusive_group()
    instead.add_argument("--runs", action="store_true", help="list every run as well, and whether it is done")
    instead.add_argument("--csv", action="store_true", help="write the list of runs as CSV instead")
    instead.add_argument("--targets", action="store_true", help="list what to ask Snakemake for, to have these runs")
    instead.add_argument("--exports", action="store_true", help="the same, to have their networks as models")
    one = commands.add_parser("run", help="make one result of the plan, and what it lacks, without Snakemake")
    one.add_argument("name", help="name, key, label, folder or manifest of a result")
    one.add_argument("--dry-run", action="store_true", help="list what would run")
    memory = commands.add_parser("memory", help="memory of models by stage and window, and what fits on which GPU")
    memory.add_argument("suite", nargs="?", help="whose defaults are taken (default: default_suite)")
    of = "model of the config, may be given more than once (default: those of the suite)"
    memory.add_argument("--model", action="append", metavar="NAME", help=of)
    doctor = commands.add_parser("doctor", help="check whether this machine can run a suite")
    doctor.add_argument("suite", nargs="?", help="name of the suite (default: default_suite)")
    return parser


def load(paths: list[Path]) -> Plan:
    """The plan of a config, later files merged over earlier ones as Snakemake's ``--configfile`` does."""
    merged: dict[str, Any] = {}
    for path in paths:
        raw = read_yaml(path)
        if not isinstance(raw, dict):
            raise FreelunchError(f"{path}: is not a mapping of sections")
        merged = _merged(merged, raw)
    return make_plan(parse_config(merged))


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = (key for key, value in above.items() if isinstance(value, dict) and isinstance(below.get(key), dict))
    return below | above | {key: _merged(below[key], above[key]) for key in both}


def show(plan: Plan, suite: str, options: argparse.Namespace) -> None:
    """Print what the runs of a suite take, or what to ask Snakemake for.

    Raises:
        FreelunchError: no run matches.
    """
    jobs = budget(plan, suite, options.match)
    if jobs.empty:
        raise FreelunchError(f"no run of suite {suite} matches {options.match!r}; --runs lists them")
    runs = [run for run in plan.runs[suite] if run.name in set(jobs["run"])]
    done = {run.name: Path(run.evaluation.manifest).exists() for run in runs}
    if options.targets:
        print(*(run.evaluation.manifest for run in runs), sep="\n")
    elif options.exports:
        subjects = [run.subject for run in runs if run.subject is not None]
        print(*(ExportSpec(subject=each).manifest for each in subjects if not isinstance(each, ModelSpec)), sep="\n")
    elif options.csv:
        print(as_csv(jobs, options.tflops, done), end="")
    else:
        print(f"suite {suite}: {plan.config.suites[suite].description or 'no description'}\n")
        states = {run: "done" if is_done else "to do" for run, is_done in done.items()}
        print(as_text(jobs, options.tflops, states if options.runs else None))
        print(*(f"warning: {warning}\n" for warning in warnings(jobs, Path())), sep="", end="")


def find(plan: Plan, name: str) -> Spec:
    """The spec that a person means by its name, key, label, folder or manifest.

    Where a network is pruned, recovered, evaluated and exported under one label, its evaluation is meant.

    Raises:
        FreelunchError: there is none, or there are several.
    """
    specs = plan.specs.values()
    wanted = name.rstrip("/").removesuffix("/manifest.json")
    exact = [spec for spec in specs if wanted in (spec.name, spec.key, str(spec.folder))]
    matches = exact or [spec for spec in specs if spec.label == wanted]
    if len(matches) > 1:
        matches = [spec for spec in matches if spec.stage == "evaluation"] or matches
    if not matches:
        names = [part for spec in specs for part in (spec.name, spec.label)]
        raise FreelunchError(f"the plan has nothing called {name!r}; {suggest(name, list(dict.fromkeys(names)))}")
    if len(matches) > 1:
        raise FreelunchError(f"{name!r} is more than one: {', '.join(str(spec.folder) for spec in matches[:4])}")
    return matches[0]


def run_one(plan: Plan, name: str, root: Path, dry_run: bool) -> None:
    """Run a spec and what it lacks; print a line for each.

    Raises:
        FreelunchError: no such spec, or a stage fails.
    """
    spec = find(plan, name)
    runner = Runner.of(plan.config, root, lambda line: print(line, flush=True))
    pending = runner.pending(spec)
    if dry_run:
        for each in pending:
            print(f"would run {each.stage}: {each.name}")
    else:
        runner.need(spec)
    if not pending:
        print("nothing to do")
    print(root / spec.folder)


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
