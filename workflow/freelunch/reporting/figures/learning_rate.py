"""Perplexity against the learning rate, on validation and test data, with what each of them selects."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas import DataFrame

from freelunch.reporting import charts, claims, findings, labels, style
from freelunch.reporting.comparisons import rows_of, varying
from freelunch.reporting.sweeps import AUTO, Choice, Point, Sweep, sweeps

_VIEW = "figure learning_rate"


@style.applied()
def draw(rows: DataFrame) -> Figure:
    """One colour per number of epochs: validation solid, test dashed.

    Rings mark what the validation perplexity selects, squares what the test perplexity does; a horizontal line is the
    search in each window, with the epochs that the validation perplexity selects.

    Raises:
        FreelunchError: as ``sweeps.sweeps``.
    """
    found = _home(rows)
    epochs = sorted({point.epochs for sweep in found for point in _shown(sweep)})
    looks = {count: style.SERIES[place % len(style.SERIES)] for place, count in enumerate(epochs)}
    panels = _panels(found)
    figure, axes = charts.axes_of(panels)
    for axis, (_, (group,)), sweep in zip(axes, panels, found, strict=True):
        _panel(axis, sweep, looks)
        both = [cell for point in _shown(sweep) for cell in (point.validation, point.test)]
        charts.framed(axis, both, group)
        charts.log_x(axis, [float(p.learning_rate) for p in sweep.points], _rate, "Learning rate")
        axis.set_ylabel(axis.get_ylabel().replace("Test perplexity", "Perplexity"))
    keys = [charts.key(style.counted(count, "epoch"), look) for count, look in looks.items()]
    styles: list[tuple[str, charts.Line]] = [("Validation", "-"), ("Test", charts.DASHES)]
    styles += [("Test, search in each window", charts.MIXED)] if any(sweep.auto for sweep in found) else []
    keys += [Line2D([], [], color=style.GREY, linestyle=line, label=name) for name, line in styles]
    keys += [
        Line2D([], [], color=style.BLACK, marker=mark, linestyle="none", fillstyle="none", markersize=8, label=name)
        for name, mark in (("Selected by validation", "o"), ("Selected by test", "s"))
    ]
    return charts.finish(figure, keys, _statement(found))


def caption(rows: DataFrame) -> str:
    """What the paper's code does, and what each selection gives at what cost."""
    return _statement(_home(rows))


def selected(rows: DataFrame) -> DataFrame:
    """Perplexities of the runs that are compared."""
    return rows_of((sweep.group for sweep in _home(rows)), rows)


def _statement(found: list[Sweep]) -> str:
    sentences = []
    for (title, (group,)), sweep in zip(_panels(found), found, strict=True):
        told = [_told(choice) for choice in sweep.choices()]
        sentences.append((title, "; ".join([*told, findings.against(group)])))
    return claims.statement("learning_rate", _apart(found) + findings.joined(sentences))


def _apart(found: list[Sweep]) -> str:
    """What validation is on, where that is another data set than the axis is of."""
    settings = [sweep.group.setting for sweep in found]
    others = sorted({str(at["calibration"]) for at in settings if at["calibration"] != at["dataset"]})
    return f"Validation perplexity is on text of {', '.join(others)}, not of the axis. " if others else ""


def _home(rows: DataFrame) -> list[Sweep]:
    """The sweeps measured on the data set that selects, if there are such."""
    found = sweeps(rows, _VIEW)
    return [s for s in found if s.group.setting["dataset"] == s.group.setting["calibration"]] or found


def _panels(found: list[Sweep]) -> list[charts.Panel]:
    differing = varying(sweep.group.setting for sweep in found)
    return [(charts.title(sweep.group.setting, differing), [sweep.group]) for sweep in found]


def _panel(axis: Axes, sweep: Sweep, looks: dict[int, style.Look]) -> None:
    for count, look in looks.items():
        points = sorted((p for p in sweep.points if p.epochs == count), key=lambda point: float(point.learning_rate))
        rates = [float(point.learning_rate) for point in points]
        charts.marks(axis, rates, [point.validation for point in points], look, "-")
        charts.marks(axis, rates, [point.test for point in points], look, charts.DASHES)
    for choice, mark in zip(sweep.choices(), ("o", "s", ""), strict=False):
        point = choice.point
        if choice.by == AUTO:
            if math.isfinite(point.test.value):
                charts.level(axis, point.test.value, looks[point.epochs].colour, charts.MIXED)
            continue
        cell = point.validation if choice.by == "validation" else point.test
        if math.isfinite(cell.value):
            axis.plot(float(point.learning_rate), cell.value, mark, color=style.BLACK, fillstyle="none", markersize=9)


def _shown(sweep: Sweep) -> list[Point]:
    """The sweep, and of the search what was chosen."""
    return [*sweep.points, *(choice.point for choice in sweep.choices() if choice.by == AUTO)]


def _told(choice: Choice) -> str:
    point = choice.point
    which = "" if choice.by == AUTO else f"learning rate {_rate(float(point.learning_rate))}, "
    cost = f"{style.counted(choice.runs, 'run')}, {choice.seconds:,.0f} s"
    name = labels.value("selection", choice.by).lower()
    how = name if choice.by == AUTO else f"selected by {name}"
    return f"{how}: test {findings.shown(point.test)} ({which}{style.counted(point.epochs, 'epoch')}; {cost})"


def _rate(value: float) -> str:
    """0.0005 as 5e-4."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
