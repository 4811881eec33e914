"""Figures: what is drawn, against the numbers of the rows; scales, labels and bytes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made import RETRAINED, Suite, criteria, everything, sweep_suite, windows
from matplotlib.axes import Axes

from freelunch.errors import FreelunchError
from freelunch.report import plot, rows, views
from freelunch.report.compare import Estimate
from freelunch.report.plot import Drawing


def numbers(drawing: Drawing, panel: int = 0) -> dict[str, list[tuple[float, float]]]:
    """By series of a panel, places and values."""
    found: dict[str, list[tuple[float, float]]] = {}
    for series in drawing.panels[panel].series:
        found.setdefault(series.name, []).extend((round(x, 9), round(cell.value, 9)) for x, cell in series.points)
    return found


def words(axis: Axes) -> list[str]:
    return [each.get_text() for each in axis.texts]


def test_categories_have_a_mark_per_value_and_baselines_across() -> None:
    suite = Suite()
    suite.add(130.0)
    suite.local(43.0, window="matrix")
    suite.local(30.2)
    suite.local(29.9, window="block")
    drawing = views.figure("window", suite.frame)
    assert [panel.title for panel in drawing.panels] == ["m, Wanda, 2:4"] * 2, "measured on two sets of text"
    (panel, _) = drawing.panels
    assert panel.ticks == ["Matrix", "Attention / MLP", "Block"] and panel.y == "Test perplexity\n(wiki, 256 tokens)"
    assert numbers(drawing) == {"Norms and biases trained": [(0, 43.0), (1, 30.2), (2, 29.9)]}
    assert [series.line for series in panel.series] == ["none", "-"], "matrices are no sizes of the same thing"
    assert {level.name: level.value for level in panel.levels} == {"Dense": 14.0, "Not recovered": 130.0}
    (axis, _) = plot.draw(drawing).axes
    assert {"43.0", "30.2", "29.9", "14.0"} <= set(words(axis))


def test_along_pruning_what_is_not_recovered_is_a_series() -> None:
    drawing = views.figure("criterion", criteria({"magnitude": (100.0, 33.0), "wanda": (40.0, 30.0)}).frame)
    assert numbers(drawing) == {"Not recovered": [(-0.3, 100.0), (0.7, 40.0)], "Recovered": [(0.3, 33.0), (1.3, 30.0)]}
    (legend,) = plot.draw(drawing).legends
    assert [each.get_text() for each in legend.texts] == ["Not recovered", "Recovered", "Dense"]


def test_scatters_sizes_and_races_are_over_their_columns() -> None:
    suite = Suite()
    suite.add(130.0)
    suite.local(30.0, search_tokens=16384)  # as many tokens as it was trained on
    suite.local(31.0, parametrization="norms", trainable_parameters=60)
    suite.local(28.0, training_sequences=64, training_tokens=2 * 64 * 256)
    for tokens, value in ((16384, 50.0), (65536, 29.0)):
        suite.add(value, **(RETRAINED | {"epochs": tokens // 8192, "training_tokens": tokens}))
    suite.add(90.0, recovery="repair", repair="layer")
    frame = suite.frame[suite.frame["dataset"] == "wiki"]
    assert numbers(views.figure("parametrization", frame)) == {"All parameters": [(1000, 30)], "Norms": [(60, 31)]}
    assert numbers(views.figure("calibration_size", frame))["Recovered (pruning saw 32 sequences)"] == [
        (8192, 30.0), (16384, 28.0)
    ]  # fmt: skip
    race = views.figure("retraining", frame)
    assert numbers(race)["Cross-entropy"] == [(16384, 50.0), (65536, 29.0)]
    assert numbers(race, 1)["Reconstruction"][0] == (6e6 * 2 * 16384, 30.0), "searching takes compute"
    assert {level.name for level in race.panels[0].levels} == {"Repair, per matrix", "Dense", "Not recovered"}
    unknown = views.figure("retraining", frame.assign(parameters=frame["parameters"].where(frame["run"] == "")))
    assert len(unknown.panels) == 1, "compute needs the size of the model"


def test_learning_rates_show_what_was_selected() -> None:
    drawing = views.figure("learning_rate", sweep_suite().frame)
    (panel,) = drawing.panels
    found = numbers(drawing)
    assert found["Selected by validation"] == [(1e-4, 30.5)] and found["Selected by test"] == [(1e-2, 29.5)]
    assert panel.levels[0].value == 30.5, "of the searches the one that validation selects"
    assert not drawing.notes
    frame = sweep_suite().frame
    other = frame.assign(dataset=frame["dataset"].mask(frame["split"] == "test", "news"))
    assert "on text of wiki, not of the axis" in views.figure("learning_rate", other).notes[0]


def test_drift_is_of_blocks_alone_and_with_all_before_and_many_lines_are_labelled_at_their_ends() -> None:
    drawing = views.figure("drift", everything((0,)).frame)
    alone, accumulated = numbers(drawing), numbers(drawing, 1)
    assert "calibration data" in drawing.panels[0].title
    assert alone["Matrix"] == [(block, 0.27) for block in range(8)]
    assert accumulated["Matrix"] == [(block, round(0.27 * (1 + block) ** 0.5, 9)) for block in range(8)]
    assert not [name for name in alone if "Repair" in name]
    many = plot.draw(replace(drawing, panels=[_crowded(panel) for panel in drawing.panels]))
    assert not many.legends and len(words(many.axes[1])) > 12 and not words(many.axes[0])


def _crowded(panel: plot.Panel) -> plot.Panel:
    more = [replace(series, name=f"{series.name}, {again}" * 3) for again in range(3) for series in panel.series]
    return replace(panel, series=more)


def test_losses_are_relative_to_where_windows_started() -> None:
    frame = windows().frame
    losses = views.figure("validation_loss", frame)
    assert [panel.title for panel in losses.panels] == ["m, Wanda, 2:4\nAttention half", "m, Wanda, 2:4\nMLP half"]
    (depth, curve), *_ = losses.panels[0].many or []
    assert depth == 0 and np.allclose(curve, [(0, 1), (8, 0.8), (16, 0.9)])
    gain = views.figure("gain", frame)
    assert numbers(gain) == {name: [(0, 20.0), (1, 20.0)] for name in ("Attention half", "MLP half")}
    lost = rows.to_frame([record | {"value": math.nan} if record.get("step") == 8 else record
                          for record in windows().records])  # fmt: skip
    assert "2 windows not finite" in words(plot.draw(views.figure("validation_loss", lost)).axes[0])
    assert "4 windows not finite" in words(plot.draw(views.figure("gain", lost)).axes[0])
    with pytest.raises(FreelunchError, match="position '7_mlp' is not a window"):
        views.figure("gain", frame.assign(position=frame["position"].str.replace("0.mlp", "7_mlp")))


def test_values_that_are_not_finite_stand_hollow_at_the_top_and_lines_far_off_are_arrows() -> None:
    suite = criteria({"magnitude": (math.inf, 33.0), "wanda": (40.0, 30.0)})
    assert "∞" in words(plot.draw(views.figure("perplexity", suite.frame)).axes[0])
    suite = Suite()
    suite.add(1e6)
    suite.local(30.0)
    suite.local(30.5, loss="cosine")
    axis = plot.draw(views.figure("loss", suite.frame)).axes[0]
    low, high = axis.get_ylim()
    assert low > 14.0 and high < 40 and {"14.0 ↓", "10⁶ ↑"} <= set(words(axis)), "values are not squeezed"


@pytest.mark.parametrize(
    ("low", "high", "most", "wanted"),
    [
        (20, 110, 10, [20, 30, 50, 70, 100]), (3e-5, 1.6e-2, 5, [1e-4, 1e-3, 1e-2]), (13.8, 14.1, 10, [14.0]),
        (5e12, 3e13, 5, [5e12, 1e13, 2e13]),
    ],
)  # fmt: skip
def test_ticks_are_round(low: float, high: float, most: int, wanted: list[float]) -> None:
    found = plot.ticks(math.log10(low), math.log10(high), most)
    assert len(found) <= most and np.allclose([each for each in found if each in found], found)
    assert set(np.round(wanted, 12)) <= set(np.round(found, 12)) or found == pytest.approx(wanted)


def test_words_beside_a_panel_do_not_lie_on_each_other() -> None:
    ends = [[(0, Estimate(1.0)), (1, Estimate(2.0 + place / 1000))] for place in range(40)]
    close = [plot.Series(f"line {place} of a long name", points, plot.SERIES[place % 10], "-")
             for place, points in enumerate(ends)]  # fmt: skip
    view = views.find("figure", "drift")
    drawing = Drawing(view, [plot.Panel("", close, "x", "y")], Suite().frame, lines=True)
    axis = plot.draw(drawing).axes[0]
    heights = sorted(each.get_position()[1] for each in axis.texts)
    inches = np.diff(heights) * axis.get_window_extent().height / axis.figure.dpi
    assert len(heights) == 40 and inches.min() > 6.5 / 72


def test_the_same_rows_give_the_same_bytes_whatever_the_users_settings(tmp_path: Path) -> None:
    import matplotlib

    suite = criteria({"magnitude": (100.0, 33.0), "wanda": (40.0, 30.0)})
    plot.save(views.figure("criterion", suite.frame), tmp_path / "a" / "f")
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "x"}):
        plot.save(views.figure("criterion", rows.to_frame(suite.records[::-1])), tmp_path / "b" / "f")
    for kind in ("pdf", "svg", "png"):
        assert (tmp_path / f"a/f.{kind}").read_bytes() == (tmp_path / f"b/f.{kind}").read_bytes()


@pytest.mark.parametrize("name", [*views.FIGURES])
def test_what_a_suite_lacks_is_named(name: str) -> None:
    suite = Suite()
    if name != "perplexity":
        suite.add(130.0)
    with pytest.raises(FreelunchError, match=rf"figure {name} needs .*; suite s has none"):
        views.figure(name, suite.frame)
