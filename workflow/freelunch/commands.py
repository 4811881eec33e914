"""``python -m freelunch run``: one result of a plan, and what it builds on, without Snakemake."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from freelunch.errors import FreelunchError, suggest
from freelunch.plan.plan import Plan
from freelunch.plan.spec import Spec
from freelunch.runner import Runner


def find(plan: Plan, name: str) -> Spec:
    """The spec of a plan that a person means.

    Args:
        name: of a folder of results, its key, its label, its folder or its manifest. Where a network is pruned,
            recovered, evaluated and exported under one label, its evaluation is meant.

    Raises:
        FreelunchError: there is none, or there are several.
    """
    specs = plan.specs.values()
    wanted = name.rstrip("/").removesuffix("/manifest.json")
    exact = [spec for spec in specs if wanted in (spec.name, spec.key, str(spec.folder))]
    found = exact or [spec for spec in specs if spec.label == wanted]
    if len(found) > 1:
        found = [spec for spec in found if spec.stage == "evaluation"] or found
    if not found:
        names = [part for spec in specs for part in (spec.name, spec.label)]
        raise FreelunchError(f"the plan has nothing called {name!r}; {suggest(name, list(dict.fromkeys(names)))}")
    if len(found) > 1:
        raise FreelunchError(f"{name!r} is more than one: {_listed(found)}")
    return found[0]


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


def _listed(specs: Iterable[Spec]) -> str:
    return ", ".join(str(spec.folder) for spec in list(specs)[:4])
