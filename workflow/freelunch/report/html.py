"""The report of a suite: one HTML file that needs nothing beside it, and leads with what was lost and recovered."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, StrictUndefined
from pandas import DataFrame

from freelunch.errors import FreelunchError
from freelunch.report import text
from freelunch.report.compare import (
    PRUNED,
    among,
    best,
    held_out,
    of,
    on_text,
    ordered,
    recovered,
    summary,
    values_of,
)
from freelunch.report.render import Shown, about, caption, shown
from freelunch.report.rows import plain
from freelunch.report.verdicts import UNTESTED, Verdict
from freelunch.report.views import View, find

TEMPLATE = Path(__file__).with_name("page.html.j2")
_LARGEST = 2**20
"""Bytes up to which a figure is embedded as SVG; drawings of some thousand lines are smaller as PNG."""


class Part(NamedTuple):
    """A table or a figure as the report shows it."""

    view: View
    title: str
    caption: list[str]
    table: Shown | None = None
    image: str | None = None


class Source(NamedTuple):
    """A model or a data set: where it is from, and its licence."""

    kind: str
    name: str
    origin: str
    licence: str


@dataclass(frozen=True)
class Report:
    """Everything that the report shows.

    Attributes:
        parts: tables and figures; the first of each is what the report leads with.
        jobs: what a manifest says of a finished result (:func:`job`), each once, upstream first.
        options: of the command line that makes a view, beside the target.
        config: of the suite, with every default filled in.
    """

    suite: str
    description: str
    rows: DataFrame
    parts: Sequence[Part]
    verdicts: Sequence[Verdict]
    jobs: Sequence[Mapping[str, Any]]
    sources: Sequence[Source]
    config: str
    options: str = ""


def html(report: Report) -> str:
    """The report as text; all names in it are escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["slug"] = lambda words: words.replace(" ", "-")
    parts = list(report.parts)
    leading = [next((part for part in parts if part.view.kind == kind), None) for kind in ("figure", "table")]
    first = [part for part in leading if part is not None]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        report=report, compressed=compressed(report.rows), answer=answer(report.rows),
        leading=first, others=[part for part in parts if part not in first],
        tested=[verdict for verdict in report.verdicts if verdict.outcome != UNTESTED],
        untested=[verdict for verdict in report.verdicts if verdict.outcome == UNTESTED],
        work=work(report.jobs), versions=versions(report.jobs), papers=text.TEXT["papers"].values(),
        machines=sorted({str(job["machine"]) for job in report.jobs}),
        made=max((str(job["finished"]) for job in report.jobs), default="unknown")[:16].replace("T", " "),
    )  # fmt: skip


def table_part(name: str, rows: DataFrame) -> Part:
    """A table, made from rows."""
    view = find("table", name)
    table = view.make(rows)
    return Part(view, text.title(name), about(table), table=shown(table))


def figure_part(name: str, rows: DataFrame, svg: bytes, png: bytes) -> Part:
    """A figure that was drawn, embedded; its caption is made from rows."""
    view = find("figure", name)
    drawing = view.make(rows)
    kind, data = ("svg+xml", svg) if len(svg) <= _LARGEST else ("png", png)
    image = f"data:image/{kind};base64,{b64encode(data).decode()}"
    return Part(view, text.title(name), caption(view, drawing.runs, drawing.notes), image=image)


# --- the answer ------------------------------------------------------------------------------------------------------


def compressed(rows: DataFrame) -> str:
    """What was compressed, and how."""
    pruned = rows[rows["criterion"] != "dense"]
    if pruned.empty:
        return "Nothing was pruned."
    named = {
        axis: [text.value(axis, value) for value in values_of(pruned, axis)]
        for axis in ("model", "criterion", "pattern")
    }
    return f"{', '.join(named['model'])}, pruned by {', '.join(named['criterion'])} at {', '.join(named['pattern'])}."


def answer(rows: DataFrame) -> Shown | None:
    """Perplexity dense, pruned and recovered, by model and pruning; None where nothing pruned has a perplexity.

    On the data that was calibrated with if there is such, at the longest length. Of several recoveries the validation
    perplexity chooses; without one there is what they range over.
    """
    rows = plain(rows)
    runs = held_out(on_text(rows))
    pruned = runs[runs["criterion"] != "dense"]
    if pruned.empty:
        return None
    home = pruned[pruned["dataset"] == pruned["calibration"]]
    at = (home if len(home) else pruned).sort_values(["length", "dataset"], kind="stable").iloc[-1]
    runs = of(runs, {"dataset": at["dataset"], "length": at["length"]})
    lines = []
    for setting in ordered(runs[runs["criterion"] != "dense"], ["model", "criterion", "pattern"]):
        here = of(runs, setting)
        chosen, how, span = _chosen(recovered(here), rows)
        alone = here[here["recovery"] == text.NOT_RECOVERED]
        if len(chosen):
            alone = among(of(alone, {axis: chosen[axis].iloc[0] for axis in PRUNED}), chosen)
        dense = summary(of(runs, {"model": setting["model"], "criterion": "dense"}))
        cells = [text.number(cell.value) if cell else "–" for cell in (dense, summary(alone), summary(chosen))]
        after = [cells[2], how] if how else [span, ""]
        lines.append([*(text.value(*pair) for pair in setting.items()), *cells[:2], *after])
    heads = [*map(text.axis, ("model", "criterion", "pattern")), "Dense", "Pruned", "Recovered", "By"]
    frame = DataFrame(lines, columns=heads)
    if (frame["Recovered"] == "–").all():
        frame = frame.drop(columns=["Recovered", "By"])
    return Shown(frame, frame.map(lambda _: False), 3)


def _chosen(runs: DataFrame, rows: DataFrame) -> tuple[DataFrame, str, str]:
    """The runs of one recovery and what it is; or all, and what they range over."""
    try:
        chosen = best(runs, ["dataset", "length"], rows, "the answer") if len(runs) else runs
    except FreelunchError:
        ends = [text.number(float(runs["value"].agg(end))) for end in ("min", "max")]
        return runs, "", " to ".join(ends)
    if chosen.empty:
        return chosen, "", "–"
    recovery, window = chosen["recovery"].iloc[0], chosen["window"].iloc[0]
    how = text.value("recovery", recovery) + ("" if pd.isna(window) else f", {text.value('window', window)}")
    return chosen, how, ""


# --- the work --------------------------------------------------------------------------------------------------------


def job(stage: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of its job: seconds (of all training, if that was interrupted), peak memory of the device or
    else of the process, tokens that went through the network, and the machine."""
    tokens = manifest.get("tokens")
    if "training_tokens" in manifest:
        # a model that is trained from random weights is given its rate
        tokens = manifest["training_tokens"] + manifest.get("search_tokens", 0)
    return {
        "stage": stage, "seconds": float(manifest.get("train_seconds", manifest["seconds"])),
        "peak_gib": float(manifest.get("peak_device_gib", manifest["peak_gib"])),
        # tokens by split are those of a calibration set: no network has seen them yet
        "tokens": None if isinstance(tokens, dict) else tokens,
        "machine": f"{manifest['device']}, {manifest['threads']} of {manifest['cpus']} cores",
        "finished": str(manifest["finished"]), "versions": dict(manifest["versions"]),
    }  # fmt: skip


def work(jobs: Sequence[Mapping[str, Any]]) -> Shown:
    """One line per stage, in the order of the jobs, and the sum of all."""
    columns = ["stage", "seconds", "peak_gib", "tokens"]
    frame = DataFrame([{name: each[name] for name in columns} for each in jobs], columns=columns)
    frame["rated"] = frame["seconds"].where(frame["tokens"].notna())
    stages = frame.groupby("stage", sort=False)
    lines = [[str(stage), *_work(group), _rate(group)] for stage, group in stages]
    lines += [["all", *_work(frame), ""]] if len(frame) else []
    heads = ["Stage", "Jobs", "Time in all", "Longest job", "Peak memory (GiB)", "Tokens per second"]
    shown = DataFrame(lines, columns=heads)
    return Shown(shown, shown.map(lambda _: False), 1)


def _work(jobs: DataFrame) -> list[str]:
    seconds = jobs["seconds"]
    return [
        str(len(jobs)),
        duration(float(seconds.sum())),
        duration(float(seconds.max())),
        f"{jobs['peak_gib'].max():.2f}",
    ]


def _rate(jobs: DataFrame) -> str:
    seconds = float(jobs["rated"].sum())
    return f"{float(jobs['tokens'].sum()) / seconds:,.0f}" if seconds else "–"


def duration(seconds: float) -> str:
    """``0.4 s``, ``75 s``, ``12 min``, ``3.1 h``."""
    if seconds < 99.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"


def versions(jobs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Every version of every library that some job ran with."""
    every: dict[str, set[str]] = {}
    for each in jobs:
        for library, version in each["versions"].items():
            every.setdefault(library, set()).add(version)
    return {library: " and ".join(sorted(every[library])) for library in sorted(every)}
