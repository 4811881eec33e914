"""Test perplexity against the tokens that recovery was given, with pruning on as many or on a fixed number."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from pandas import DataFrame

from freelunch.reporting import charts, claims, findings, labels, style
from freelunch.reporting.comparisons import Group, rows_of, varying
from freelunch.reporting.estimates import Estimate, summary
from freelunch.reporting.studies import sizes

_VIEW = "figure calibration_size"
_WITHIN = ("sequences", "calibration_tokens")


@style.applied()
def draw(rows: DataFrame) -> Figure:
    """One line per series of runs; what is not recovered is a dotted line of its own where pruning sees as much.

    Raises:
        FreelunchError: no runs differ in the number of sequences alone.
    """
    groups = sizes(rows, _VIEW)
    found = charts.panels(groups, _WITHIN)
    names = list(dict.fromkeys(_name(group, groups) for group in groups))
    figure, axes = charts.axes_of(found)
    for axis, (_, inside) in zip(axes, found, strict=True):
        cells, tokens = [], []
        for group in inside:
            points = _points(group)
            look = style.SERIES[names.index(_name(group, groups)) % len(style.SERIES)]
            charts.marks(axis, [x for x, _ in points], [cell for _, cell in points], look, "-")
            alone = _alone(group)
            charts.marks(axis, [x for x, _ in alone], [cell for _, cell in alone], style.LOOKS["none"], charts.DOTS)
            cells += [cell for _, cell in (*points, *alone)]
            tokens += [x for x, _ in points]
        charts.framed(axis, cells, inside[0], alone=False)
        charts.log_x(axis, tokens, labels.compact, "Calibration tokens of recovery")
    keys = [charts.key(name, style.SERIES[i % len(style.SERIES)], "-") for i, name in enumerate(names)]
    return charts.finish(figure, [*keys, charts.key("Not recovered", style.LOOKS["none"], charts.DOTS)],
                         _statement(groups), alone=False)  # fmt: skip


def caption(rows: DataFrame) -> str:
    """What the paper does, and the perplexities by tokens."""
    return _statement(sizes(rows, _VIEW))


def selected(rows: DataFrame) -> DataFrame:
    """Perplexities of the runs that are compared."""
    return rows_of(sizes(rows, _VIEW), rows)


def _statement(groups: list[Group]) -> str:
    sentences = []
    for title, inside in charts.home(charts.panels(groups, _WITHIN)):
        told = []
        for group in inside:
            pairs = [(f"{labels.compact(x)} tokens", cell) for x, cell in _points(group)]
            told.append(f"{_name(group, groups)}: {findings.listed(pairs)}")
        beside = findings.listed([("dense", summary(inside[0].dense))])
        sentences.append((title, "; ".join([*told, beside] if beside else told)))
    return claims.statement("calibration_size", findings.joined(sentences))


def _points(group: Group) -> list[tuple[float, Estimate]]:
    found = [(group.estimate(value, "tokens"), group.estimate(value)) for value in group.values]
    return [(x.value, cell) for x, cell in found if x is not None and cell is not None]


def _alone(group: Group) -> list[tuple[float, Estimate]]:
    found = [(group.estimate(value, "tokens"), group.baseline(value)) for value in group.values]
    return [(x.value, cell) for x, cell in found if x is not None and cell is not None]


def _name(group: Group, groups: Sequence[Group]) -> str:
    """Whether pruning saw as much, and what else differs."""
    together = group.axis == "sequences"
    saw = "as much" if together else f"{group.setting['sequences']} sequences"
    differing = [axis for axis in varying(each.setting for each in groups if each.axis == group.axis)
                 if axis not in ("training_sequences", "calibration_length")]  # fmt: skip
    return charts.named(group, differing, "Recovered") + f" (pruning saw {saw})"
