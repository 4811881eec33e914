"""Tables and captions as text: CSV with all digits for programs, Markdown, LaTeX and cells of HTML for readers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from pandas import DataFrame

from freelunch.report import text
from freelunch.report.compare import Estimate, held_out, on_text, values_of
from freelunch.report.tables import COUNTS, Contest, Table
from freelunch.report.views import View

PAGE = 50
"""Lines of a LaTeX table that fit on a page; longer ones are broken over pages."""
_MOST = 4
"""Values that the protocol lists; more are counted."""
_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "∞": r"$\infty$",
    "–": "--", "…": r"\dots{}", "†": r"\textsuperscript{\dag}",
})  # fmt: skip
_MARKDOWN = str.maketrans({"\\": r"\\", "|": r"\|", "*": r"\*", "_": r"\_", "`": r"\`", "<": "&lt;"})
_SUPERSCRIPTS = "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"


class Shown(NamedTuple):
    """What a reader sees of a table, with nothing escaped: a frame of text, which cells are bold, how many are keys."""

    frame: DataFrame
    bold: DataFrame
    keys: int


def shown(table: Table) -> Shown:
    """The values of levels by name, and numbers with their errors."""
    mixed = len(_errors(table)) > 1
    heads = [*map(text.axis, table.levels), *table.columns.values()]
    lines = []
    for key, cells in table.lines:
        named = ["–" if pd.isna(part) else text.value(axis, part) for axis, part in zip(table.levels, key, strict=True)]
        numbers = [_cell(cell, name in COUNTS, mixed) for cell, name in zip(cells, table.columns, strict=True)]
        lines.append([*named, *numbers])
    best = {cell for contest in table.contests for cell in _best(table, contest)}
    keys = len(table.levels)
    bold = [[(line, column - keys) in best for column in range(len(heads))] for line in range(len(lines))]
    return Shown(DataFrame(lines, columns=heads), DataFrame(bold, columns=heads), keys)


def _cell(cell: Estimate | None, count: bool, mixed: bool) -> str:
    if cell is None:
        return "–"
    written = f"{cell.value:,.0f}" if count else text.number(cell.value)
    if math.isnan(cell.stderr):
        return written
    # as many decimals as its number; both stand on their own where that is a power of ten
    error = text.number(cell.stderr) if "×" in written else f"{cell.stderr:,.{len(written.partition('.')[2])}f}"
    return f"{written} ± {error}" + ("†" if mixed and cell.runs == 1 else "")


def _best(table: Table, contest: Contest) -> list[tuple[int, int]]:
    """The places of the best numbers of a contest: what reads the same is equally good. Alone nothing is."""
    cells = {(line, column): table.lines[line][1][column] for line, column in contest.cells}
    finite = {index: cell.value for index, cell in cells.items() if cell is not None and math.isfinite(cell.value)}
    if len(finite) < 2:
        return []
    best = (max if contest.highest else min)(finite.values())
    return [index for index, value in finite.items() if text.number(value) == text.number(best)]


def _errors(table: Table) -> set[bool]:
    """Whether errors are over seeds (True), the metric's own (False), or both."""
    return {cell.runs > 1 for _, cells in table.lines for cell in cells if cell and not math.isnan(cell.stderr)}


def about(table: Table) -> list[str]:
    """The caption of a table, by paragraphs."""
    errors, notes = _errors(table), list(table.notes)
    if bold := text.TEXT["views"].get(table.view.name, {}).get("bold", _BOLD if table.contests else ""):
        notes.append(f"Bold: {bold}.")
    if errors:
        notes.append(
            text.TEXT["reading"]["mixed" if len(errors) > 1 else "over_seeds" if True in errors else "one_seed"]
        )
    return caption(table.view, table.runs, notes)


_BOLD = "the lowest perplexity of runs that are compared with each other"


def caption(view: View, runs: DataFrame, notes: Iterable[str] = ()) -> list[str]:
    """The caption of a view: the claim, what it shows, and the protocol of some rows, each a paragraph."""
    return [*text.caption(view.kind, view.name, view.reading, notes, view.claim), protocol(runs)]


def write(table: Table, stem: Path) -> None:
    """Write ``stem.csv``, ``stem.md`` and ``stem.tex``."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for kind, written in (("csv", csv(table)), ("md", markdown(table)), ("tex", latex(table))):
        stem.with_name(f"{stem.name}.{kind}").write_text(written, encoding="utf-8")


def csv(table: Table) -> str:
    """All digits; of every number its standard error and the number of runs."""
    heads = [each for name in table.columns for each in (name, f"{name}_stderr", f"{name}_runs")]
    lines = []
    for key, cells in table.lines:
        line: list[Any] = [*table.constants.values(), *(None if pd.isna(part) else part for part in key)]
        for name, cell in zip(table.columns, cells, strict=True):
            if cell is None:
                line += [None, None, 0]
                continue
            # a number that is not finite is told from one that is missing
            value = int(cell.value) if name in COUNTS else "nan" if math.isnan(cell.value) else cell.value
            line += [value, None if math.isnan(cell.stderr) else cell.stderr, cell.runs]
        lines.append(line)
    frame = DataFrame(lines, columns=[*table.constants, *table.levels, *heads], dtype=object)
    return str(frame.to_csv(index=False, lineterminator="\n"))


def markdown(table: Table) -> str:
    """Title, table and caption, which stands below."""
    frame, bold, keys = shown(table)
    heads = [str(head).translate(_MARKDOWN) for head in frame]
    cells = frame.map(lambda cell: cell.translate(_MARKDOWN)).set_axis(heads, axis=1)
    cells = cells.where(~bold.to_numpy(), "**" + cells + "**")
    align = ["left"] * keys + ["right"] * (len(frame.columns) - keys)
    body = cells.to_markdown(index=False, colalign=align, disable_numparse=True)
    return f"{paragraphs([text.title(table.view.name)])}\n{body}\n\n{paragraphs(about(table))}"


def paragraphs(lines: Iterable[str]) -> str:
    """Text as Markdown, one paragraph per line."""
    return "\n\n".join(line.translate(_MARKDOWN) for line in lines) + "\n"


def latex(table: Table) -> str:
    """A table with booktabs; a longtable where no page holds it."""
    frame, bold, keys = shown(table)
    # a label is written once, over all lines it holds for
    same = (frame.iloc[:, :keys] == frame.iloc[:, :keys].shift()).cumprod(axis=1).astype(bool)
    cells, places = frame.map(escaped), range(len(frame.columns))
    cells.iloc[:, :keys] = cells.iloc[:, :keys].mask(same, "")
    marks = bold.map(lambda best: "textbf:--rwrap;" if best else "").set_axis(places, axis=1)
    styler = cells.set_axis(places, axis=1).style.hide(axis="index").apply(lambda _: marks, axis=None)
    styler = styler.relabel_index([escaped(str(head)) for head in frame.columns], axis="columns")
    long, caption = len(frame) > PAGE, escaped(" ".join(about(table)))
    body = styler.to_latex(hrules=True, column_format="l" * keys + "r" * (len(places) - keys),
                           caption=caption, label=f"tab:{table.suite}-{table.view.name}",
                           environment="longtable" if long else "table",
                           position_float=None if long else "centering")  # fmt: skip
    # once is enough of a longtable's caption
    body = body.replace(
        rf"\caption[]{{{caption}}}", rf"\caption[]{{{escaped(text.title(table.view.name))}, continued}}"
    )
    return f"% needs \\usepackage{{{'booktabs,longtable' if long else 'booktabs'}}}\n{body}"


def escaped(words: str) -> str:
    """Text for LaTeX."""
    parts = re.split(rf"((?:\d[\d.]*×)?10[{_SUPERSCRIPTS}]+)", words)
    return "".join(_power(part) if index % 2 else part.translate(_LATEX) for index, part in enumerate(parts))


def _power(number: str) -> str:
    mantissa, ten, exponent = number.rpartition("10")
    digits = exponent.translate(str.maketrans(_SUPERSCRIPTS, "-0123456789"))
    factor = mantissa.replace("×", r"\times ")
    return f"${factor}{ten}^{{{digits}}}$"


# --- the protocol ----------------------------------------------------------------------------------------------------


def protocol(rows: DataFrame) -> str:
    """How some rows were made and measured, in a line: models, calibration, training, measurements and seeds."""
    models = rows[["model", "parameters", "trained_on"]].drop_duplicates().sort_values(["parameters", "model"])
    named = []
    for model, size, data in models.itertuples(index=False):
        what = [] if pd.isna(size) else [f"{text.compact(float(size))} parameters"]
        # a small model of one's own is no published one, and says less about those
        what += [] if pd.isna(data) else [f"trained here from random weights on {data}"]
        named.append(f"{model} ({', '.join(what)})" if what else str(model))
    words = [_listed(named)]
    runs = rows[rows["calibration"].notna()]
    if len(runs):
        amounts = [_values(runs, "sequences", " sequences"), _values(runs, "calibration_images", " images")]
        lengths = sorted((runs["calibration_tokens"] // runs["sequences"]).dropna().unique())
        amounts[0] += f" of {_listed(lengths)} tokens" if lengths else ""
        words.append(", ".join([f"calibrated on {_values(runs, 'calibration')}", *(each for each in amounts if each)]))
    trained = rows[rows["epochs"].notna() & rows["learning_rate"].notna()]
    if len(trained):
        epochs, rate = _values(trained, "epochs"), _values(trained, "learning_rate")
        words.append(f"trained for {epochs} epoch{'' if epochs == '1' else 's'}, learning rate {rate}")
    read = held_out(on_text(rows))
    if len(read):
        splits = [f"{split} text of {_values(inside, 'dataset')}" for split in ("test", "validation")
                  if len(inside := read[read["split"] == split])]  # fmt: skip
        words.append(f"perplexity on {' and '.join(splits)} in windows of {_values(read, 'length')} tokens")
    drifted = held_out(rows[rows["metric"].str.startswith("drift_", na=False)])
    if len(drifted):
        words.append(
            f"drift on text of {_values(drifted, 'dataset')} in sequences of {_values(drifted, 'length')} tokens"
        )
    if tasks := rows[rows["metric"] == "chance"]["dataset"].nunique():
        words.append(f"{tasks} zero-shot tasks")
    seen = rows[(rows["metric"] == "accuracy") & (rows["split"] == "test")]
    words += [f"accuracy on test images of {_values(seen, 'dataset')}"] if len(seen) else []
    seeds = sorted(rows["seed"].dropna().unique())
    words += [f"seed{'s' if len(seeds) > 1 else ''} {_listed(seeds)}"] if seeds else []
    return f"Protocol: {'; '.join(words)}."


def _values(rows: DataFrame, axis: str, after: str = "") -> str:
    values = _listed(text.value(axis, value) for value in values_of(rows, axis))
    return values and values + after


def _listed(values: Iterable[Any]) -> str:
    """``8, 32, 128``; of many the first, the last and their number."""
    words = [str(value) for value in values]
    return f"{words[0]} to {words[-1]} ({len(words)} values)" if len(words) > _MOST else ", ".join(words)
