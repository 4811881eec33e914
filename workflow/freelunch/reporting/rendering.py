"""Tables as text: CSV with all digits for programs, Markdown and LaTeX (booktabs) for readers."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd

from freelunch.reporting import labels
from freelunch.reporting.estimates import Estimate
from freelunch.reporting.table import Column, Contest, Table

Kind = Literal["csv", "md", "tex"]
KINDS: tuple[Kind, ...] = ("csv", "md", "tex")
PAGE = 50
"""Lines of a LaTeX table that fit on a page; longer ones are broken over pages."""

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "×": r"$\times$", "∞": r"$\infty$", "–": "--", "†": r"\textsuperscript{\dag}",
}  # fmt: skip
_MARKDOWN = {"\\": r"\\", "|": r"\|", "*": r"\*", "_": r"\_", "`": r"\`", "<": "&lt;"}


class Number(NamedTuple):
    """A cell as text: the number, its error with a mark, and whether it is the best of its line."""

    text: str
    error: str
    best: bool


class Shown(NamedTuple):
    """A table as text: caption, heads of levels and of columns, and lines of labels and numbers."""

    caption: str
    levels: list[str]
    columns: list[str]
    lines: list[tuple[tuple[str, ...], list[Number]]]


def shown(table: Table) -> Shown:
    """What a reader sees of a table, with nothing escaped for any format."""
    levels, columns = [labels.axis(name) for name in table.levels], [column.label for column in table.columns]
    lines = [(key, [Number(*cell) for cell in cells]) for key, cells in _texts(table)]
    return Shown(_caption(table), levels, columns, lines)


def render(table: Table, kind: Kind) -> str:
    """The table as CSV, Markdown or LaTeX; in the latter two the best numbers are bold, and the caption is complete."""
    return {"csv": _csv, "md": _markdown, "tex": _latex}[kind](table)


def write(table: Table, stem: Path) -> list[Path]:
    """Write ``stem.csv``, ``stem.md`` and ``stem.tex``."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in KINDS]
    for path, kind in zip(paths, KINDS, strict=True):
        path.write_text(render(table, kind), encoding="utf-8")
    return paths


def number(value: float) -> str:
    """Two decimals up to 100, four significant digits below 1 and above; powers of ten from 100,000 up."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    size = abs(value)
    if size >= 99_999.5:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{mantissa}×10^{int(exponent)}"
    if size < 1:
        return f"{value:#.4g}" if size else "0"
    return f"{value:.2f}" if size < 99.995 else f"{value:.1f}" if size < 999.95 else f"{value:,.0f}"


def latex(text: str) -> str:
    """Escape text for LaTeX."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def markdown(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    return "".join(_MARKDOWN.get(letter, letter) for letter in text)


def _csv(table: Table) -> str:
    columns = [(column.name, f"{column.name}_stderr", f"{column.name}_runs") for column in table.columns]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*table.constants, *table.levels, *(name for names in columns for name in names)])
    for key, cells in table.lines:
        line: list[Any] = [*table.constants.values(), *key]
        for column, cell in zip(table.columns, cells, strict=True):
            if cell is None:
                line += ["", "", 0]
            else:
                exact = int(cell.value) if column.kind == "count" else cell.value
                line += [exact, "" if math.isnan(cell.stderr) else cell.stderr, cell.runs]
        writer.writerow(["" if pd.isna(part) else part for part in line])
    return stream.getvalue()


def _markdown(table: Table) -> str:
    head = [*(labels.axis(name) for name in table.levels), *(column.label for column in table.columns)]
    rule = [*("---" for _ in table.levels), *("---:" for _ in table.columns)]
    lines = [head, rule]
    for key, cells in _texts(table):
        numbers = [f"**{text}**{rest}" if bold else f"{text}{rest}" for text, rest, bold in cells]
        lines.append([*(markdown(part) for part in key), *numbers])
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    notes = "".join(f"\n{markdown(line)}\n" for line in table.about.splitlines())
    return f"{markdown(_caption(table))}\n\n{body}\n{notes}"


def _latex(table: Table) -> str:
    head = [*(labels.axis(name) for name in table.levels), *(column.label for column in table.columns)]
    caption = rf"\caption{{{latex(' '.join([_caption(table), *table.about.splitlines()]))}}}"
    # an escaped underscore is no part of a label
    label = rf"\label{{tab:{table.suite}-{table.name}}}"
    columns = f"{'l' * len(table.levels)}{'r' * len(table.columns)}"
    named = [r"\toprule", " & ".join(latex(part) for part in head) + r" \\", r"\midrule"]
    long = len(table.lines) > PAGE
    if long:
        lines = ["% needs \\usepackage{booktabs,longtable}", rf"\begin{{longtable}}{{{columns}}}"]
        lines += [caption, label + r" \\", *named, r"\endhead"]
    else:
        lines = ["% needs \\usepackage{booktabs}", r"\begin{table}", r"\centering", caption, label]
        lines += [rf"\begin{{tabular}}{{{columns}}}", *named]
    above: tuple[str, ...] = ()
    for key, cells in _texts(table):
        if above and key[:-1] != above[:-1]:
            lines.append(r"\addlinespace")
        # a label is written once, over all lines it holds for
        shown = ["" if key[: i + 1] == above[: i + 1] else latex(part) for i, part in enumerate(key)]
        numbers = [_tex_number(text, bold) + latex(rest) for text, rest, bold in cells]
        lines.append(" & ".join([*shown, *numbers]) + r" \\")
        above = key
    end = [r"\end{longtable}"] if long else [r"\end{tabular}", r"\end{table}"]
    return "\n".join([*lines, r"\bottomrule", *end, ""])


def _tex_number(text: str, bold: bool) -> str:
    mantissa, times, power = text.partition("×10^")
    written = rf"${mantissa}\times 10^{{{power}}}$" if times else latex(text)
    return rf"\textbf{{{written}}}" if bold else written


def _texts(table: Table) -> list[tuple[tuple[str, ...], list[tuple[str, str, bool]]]]:
    """Lines as text: labels, and for each number its text, its error with a mark, and whether it is the best."""
    mixed = len(_kinds(table)) > 1
    best = {place for contest in table.contests for place in _best(table, contest)}
    lines = []
    for line, (key, cells) in enumerate(table.lines):
        texts = []
        for place, (column, cell) in enumerate(zip(table.columns, cells, strict=True)):
            text = _text(column, cell)
            error = "" if cell is None or math.isnan(cell.stderr) else f" ± {_rounded_like(cell.stderr, text)}"
            mark = "†" if error and mixed and cell is not None and cell.runs == 1 else ""
            texts.append((text, error + mark, (line, place) in best))
        shown = tuple("–" if pd.isna(p) else labels.value(n, p) for n, p in zip(table.levels, key, strict=True))
        lines.append((shown, texts))
    return lines


def _best(table: Table, contest: Contest) -> list[tuple[int, int]]:
    """The places of the best numbers of a contest: what reads the same is equally good. Alone nothing is."""
    found = {(line, column): table.lines[line][1][column] for line, column in contest.cells}
    finite = {place: cell.value for place, cell in found.items() if cell is not None and math.isfinite(cell.value)}
    if len(finite) < 2:
        return []
    best = (max if contest.highest else min)(finite.values())
    return [place for place, value in finite.items() if number(value) == number(best)]


def _text(column: Column, cell: Estimate | None) -> str:
    if cell is None:
        return "–"
    return f"{cell.value:,.0f}" if column.kind == "count" else number(cell.value)


def _rounded_like(error: float, text: str) -> str:
    """An error with as many decimals as its number; both stand on their own where the number is a power of ten."""
    return number(error) if "×" in text else f"{error:,.{len(text.partition('.')[2])}f}"


def _kinds(table: Table) -> set[bool]:
    """Whether errors are over seeds (True), the metric's own (False), or both."""
    return {cell.runs > 1 for _, cells in table.lines for cell in cells if cell and not math.isnan(cell.stderr)}


def _caption(table: Table) -> str:
    parts = [table.title]
    if table.bold:
        parts.append(f"Bold: {table.bold}.")
    kinds = _kinds(table)
    if True in kinds:
        parts.append("±: mean and standard error over seeds.")
    if kinds == {True, False}:
        parts.append("†: one run; standard error of the metric.")
    if kinds == {False}:
        parts.append("±: standard error of the metric; one seed.")
    return " ".join(parts)
