"""Mean zero-shot accuracy by criterion and pattern: not recovered, after each recovery, of the dense model, chance."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas import DataFrame

from freelunch.errors import FreelunchError
from freelunch.reporting import charts, claims, findings, labels, style, variants
from freelunch.reporting.estimates import Cells, cells, suite
from freelunch.reporting.tasks import CHANCE, MEAN, METRICS, scores

_VIEW = "figure zero_shot"


@style.applied()
def draw(rows: DataFrame) -> Figure:
    """Marks with their values, in percent; the dense model is a dashed line, guessing a dotted one.

    Raises:
        FreelunchError: no pruned run was evaluated on tasks, or there is no mean over them.
    """
    found, chance = _means(rows)

    def scale(axis: Axes, values: list[float], _: variants.Setting) -> None:
        known = [*values, *([] if chance is None else [chance])] or [0.0, 100.0]
        low, high = min(known), max(known)
        room = 0.13 * ((high - low) or 1.0)
        axis.set_ylim(max(0.0, low - room), min(100.0, high + 1.5 * room))
        if chance is not None:
            charts.level(axis, chance, style.GREY, charts.DOTS)

    keys = [] if chance is None else [Line2D([], [], color=style.GREY, linestyle=charts.DOTS, label="Chance")]
    figure = variants.draw(found, scale, lambda _: "Mean zero-shot\naccuracy (%)", tuple(keys))
    charts.note(figure, _statement(found, chance))
    return figure


def caption(rows: DataFrame) -> str:
    """The claim, and of every setting the mean accuracies and how much of the loss was recovered."""
    return _statement(*_means(rows))


def selected(rows: DataFrame) -> DataFrame:
    """All accuracies, and what guessing gives."""
    return rows[rows["metric"].isin([*METRICS, MEAN, CHANCE])]


def _means(rows: DataFrame) -> tuple[Cells, float | None]:
    found = scores(rows, _VIEW)
    means = found.rows[found.rows["task"] == MEAN].drop(columns=["variant", "task"])
    if means[means["criterion"] != "dense"].empty:
        raise FreelunchError(f"{_VIEW} needs the mean accuracy over tasks; suite {suite(rows)} has none")
    return cells(means), found.chance.get(MEAN)


def _statement(found: Cells, chance: float | None) -> str:
    sentences = []
    several = len({setting[0] for setting in found.settings}) > 1
    for setting in found.settings:
        at = {variant: found.cells.get((setting, variant)) for variant in found.variants}
        told = findings.listed((labels.value("variant", variant), cell) for variant, cell in at.items())
        dense, alone = at.get("dense"), at.get(labels.NOT_RECOVERED)
        if dense is not None and alone is not None and dense.value > alone.value:
            lost = dense.value - alone.value
            shares = [
                f"{labels.value('variant', variant)} {100 * (cell.value - alone.value) / lost:.0f}%"
                for variant, cell in at.items()
                if cell is not None and variant not in ("dense", labels.NOT_RECOVERED)
            ]
            told += f" (of the loss recovered: {', '.join(shares)})" if shares else ""
        shown = [labels.described(name, value) for name, value in zip(found.levels, setting, strict=True)
                 if name in ("criterion", "pattern") or (name == "model" and several)]  # fmt: skip
        sentences.append((", ".join(shown), told))
    guessed = "" if chance is None else f" (chance {style.printed(chance)})"
    return claims.statement("zero_shot", f"mean accuracy in percent{guessed}. " + findings.joined(sentences))
