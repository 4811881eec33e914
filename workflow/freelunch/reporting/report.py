"""The report of a suite: one HTML file that needs nothing beside it, built from rows and what is known of the jobs."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape
from pandas import DataFrame

from freelunch.reporting import about, claims, tabulate
from freelunch.reporting.legends import Kind, legend
from freelunch.reporting.rendering import Shown, shown
from freelunch.reporting.runtimes import Job, Total, totals, versions
from freelunch.reporting.verdicts import Verdict

_LARGEST = 2**20
"""Bytes up to which a figure is embedded as SVG; drawings of some thousand lines are smaller as PNG."""


@dataclass(frozen=True)
class View:
    """A table or a figure with its caption, the command that makes it, and the files it lies in."""

    kind: Kind
    name: str
    finding: str
    legend: tuple[str, ...]
    command: str
    files: tuple[str, ...]
    table: Shown | None = None
    image: str | None = None

    @property
    def anchor(self) -> str:
        return f"{self.kind}-{self.name}"

    @property
    def title(self) -> str:
        return self.name.replace("_", " ").capitalize()


@dataclass(frozen=True)
class Run:
    """A run of the suite with the jobs that were its own: pruning, recovery, evaluation."""

    name: str
    jobs: tuple[Job, ...]

    def of(self, stage: str) -> Job | None:
        return next((job for job in self.jobs if job.stage == stage), None)

    @property
    def recovery(self) -> Job | None:
        return next((found for stage in ("reconstructed", "retrained", "repaired") if (found := self.of(stage))), None)

    @property
    def peak_gib(self) -> float:
        return max((job.peak_gib for job in self.jobs if job.stage != "evaluation"), default=0.0)


@dataclass(frozen=True)
class Source:
    """A model or a data set: where it is from, and its licence."""

    kind: str
    name: str
    origin: str
    licence: str


@dataclass(frozen=True)
class Report:
    """Everything that the report shows; ``jobs`` are those of all stages, each once, upstream first."""

    suite: str
    description: str
    python: str
    seeds: tuple[int, ...]
    verdicts: Sequence[Verdict]
    views: Sequence[View]
    graph: str
    jobs: Sequence[Job]
    runs: Sequence[Run]
    sources: Sequence[Source]
    config: str

    @property
    def made(self) -> str:
        """When the newest result was finished."""
        newest = max((job.finished for job in self.jobs), default="")
        return newest.replace("T", " ").replace("+00:00", " UTC") or "unknown"

    @property
    def machines(self) -> list[str]:
        return sorted({job.machine for job in self.jobs})

    @property
    def versions(self) -> dict[str, list[str]]:
        return versions(self.jobs)

    @property
    def totals(self) -> list[Total]:
        return totals(self.jobs)

    @property
    def papers(self) -> dict[str, str]:
        return claims.PAPERS


def table_view(suite: str, name: str, rows: DataFrame, options: str) -> View:
    """A table, built from rows.

    Args:
        suite: of the rows.
        name: of the table.
        rows: of the suite.
        options: of the command line beside the target, such as ``--configfile FILE --``.
    """
    built = tabulate(name, rows)
    return _view(suite, "table", name, built.about, options, table=shown(built))


def figure_view(suite: str, name: str, rows: DataFrame, options: str, svg: bytes, png: bytes) -> View:
    """A figure that was drawn, embedded; its caption is computed from rows."""
    kind, data = ("svg+xml", svg) if len(svg) <= _LARGEST else ("png", png)
    image = f"data:image/{kind};base64,{b64encode(data).decode()}"
    return _view(suite, "figure", name, about(name, rows), options, image=image)


def html(report: Report, template: str) -> str:
    """The report as text.

    Args:
        report: what it shows; all of its text is escaped, but for the drawing of the workflow.
        template: Jinja2.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"power": _power, "seconds": _seconds, "slug": _slug}
    return environment.from_string(template).render(report=report, graph=Markup(report.graph))


def _view(
    suite: str,
    kind: Kind,
    name: str,
    finding: str,
    options: str,
    table: Shown | None = None,
    image: str | None = None,
) -> View:
    stem = f"results/{suite}/{kind}s/{name}"
    kinds = ("csv", "md", "tex") if kind == "table" else ("pdf", "svg", "png")
    files = tuple(f"{stem}.{ending}" for ending in kinds)
    command = f"snakemake --cores all {options}{files[0]}"
    return View(kind, name, finding, legend(kind, name), command, files, table, image)


def _power(text: str) -> Markup:
    """``1.2×10^6`` with a raised exponent."""
    mantissa, times, power = text.partition("×10^")
    return Markup("{}×10<sup>{}</sup>").format(mantissa, power) if times else escape(text)


def _seconds(value: float) -> str:
    """``0.4 s``, ``75 s``, ``12 min``, ``3.1 h``."""
    if value < 99.5:
        return f"{value:.2g} s" if value < 9.95 else f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 5970 else f"{value / 3600:.1f} h"


def _slug(text: str) -> str:
    return text.replace(" ", "-")
