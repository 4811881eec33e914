"""Every table and figure, declared. The config is checked against these names; nothing heavy is imported for that.

A further figure of a comparison is one line here, and what it shows is said in ``text.yaml``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from freelunch.errors import FreelunchError, suggest
from freelunch.plan.plan import VIEWS

if TYPE_CHECKING:
    from pandas import DataFrame

    from freelunch.report.plot import Drawing
    from freelunch.report.tables import Table

Kind = Literal["table", "figure"]
REFERENCES = Path(__file__).parents[2] / "references"
"""Published numbers, which the table ``published`` reads."""


def call(function: str, about: Any, rows: DataFrame) -> Any:
    """What a ``module:function`` of the package makes of rows."""
    from freelunch.report.rows import plain

    module, name = function.split(":")
    return getattr(import_module(f"freelunch.{module}"), name)(about, plain(rows))


@dataclass(frozen=True)
class View:
    """A table or a figure.

    Attributes:
        form: ``module:function`` of the package, which makes it of the view and the rows of a suite.
        along: the axis compared, of views of a comparison (``compare.comparison``).
        columns: of the runs. A table shows them after the perplexity, a figure has the first on its x axis.
        levels: of a table, shown besides the axes that differ.
        claim: of ``text.yaml``.
        reading: of ``text.yaml``: how to read all views of this form.
    """

    form: str
    along: str = ""
    columns: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()
    claim: str = ""
    reading: str = ""
    name: str = ""
    kind: Kind = "table"

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    def make(self, rows: DataFrame) -> Any:
        """A ``Table`` or a ``Drawing``.

        Raises:
            FreelunchError: the rows lack what it shows.
        """
        return call(self.form, self, rows)


TABLES: dict[str, View] = {}
FIGURES: dict[str, View] = {}
VIEWS |= {"tables": TABLES, "figures": FIGURES}
RULES = {name: f"report.verdicts:{name}" for name in (
    "window", "drift", "memory", "retraining", "parametrization", "criterion", "scale", "simple_criterion",
)}  # fmt: skip
"""Claims of ``text.yaml`` that have a verdict, each with the ``module:function`` that gives the cases which test it."""


def register(kind: Kind, name: str, view: View) -> None:
    """Add a view under a name; a stage of another kind of network registers its own."""
    (TABLES if kind == "table" else FIGURES)[name] = View(**{**view.__dict__, "name": name, "kind": kind})


def table(name: str, rows: DataFrame) -> Table:
    """Make a table of a suite.

    Raises:
        FreelunchError: there is no such table, or the rows lack what it shows.
    """
    return cast("Table", find("table", name).make(rows))


def figure(name: str, rows: DataFrame) -> Drawing:
    """Draw a figure of a suite.

    Raises:
        FreelunchError: there is no such figure, or the rows lack what it shows.
    """
    return cast("Drawing", find("figure", name).make(rows))


def find(kind: Kind, name: str) -> View:
    """A view by its name.

    Raises:
        FreelunchError: there is none.
    """
    views = TABLES if kind == "table" else FIGURES
    if name not in views:
        raise FreelunchError(f"there is no {kind} {name!r}; {suggest(name, views)}")
    return views[name]


def _compared(axis: str, *levels: str, columns: tuple[str, ...] = ("seconds", "peak_gib"), claim: str = "") -> View:
    return View("report.tables:compared", axis, columns, levels, claim, "compared")


def _drawn(form: str, axis: str = "", *columns: str, claim: str = "") -> View:
    return View(f"report.figures:{form}", axis, columns, (), claim, "compared")


for _name, _view in {
    "window": _compared("window", "parametrization", claim="window"),
    "flow": _compared("flow", "window", claim="flow"),
    "loss": _compared("loss", "window", claim="loss"),
    "parametrization": _compared(
        "parametrization", "window", columns=("trainable_parameters", "peak_gib", "seconds", "mismatch"),
        claim="parametrization",
    ),
    "criterion": _compared("criterion", "window", columns=(), claim="criterion"),
    "calibration": _compared("calibration", "window", columns=(), claim="calibration"),
    "calibration_size": _compared("sequences", "sequences", "training_sequences", claim="calibration_size"),
    "retraining": View("report.tables:retraining", claim="retraining", reading="compared"),
    "learning_rate": View("report.tables:learning_rate", claim="learning_rate", reading="compared"),
    "scale": View("report.tables:scale", claim="scale"),
    "drift": View("report.tables:drift", claim="drift"),
    "seeds": View("report.tables:seeds"),
    "zero_shot": View("report.tables:zero_shot", claim="zero_shot"),
    "published": View("report.tables:published"),
    "perplexity": View("report.tables:perplexity"),
    "cost": View("report.tables:cost"),
}.items():  # fmt: skip
    register("table", _name, _view)

for _name, _view in {
    "window": _drawn("categories", "window", claim="window"),
    "flow": _drawn("categories", "flow", claim="flow"),
    "loss": _drawn("categories", "loss", claim="loss"),
    "criterion": _drawn("categories", "criterion", claim="criterion"),
    "calibration": _drawn("categories", "calibration", claim="calibration"),
    "parametrization": _drawn("scatter", "parametrization", "trainable_parameters", claim="parametrization"),
    "memory": _drawn("scatter", "window", "peak_gib", claim="memory"),
    "calibration_size": _drawn("calibration_size", "sequences", claim="calibration_size"),
    "retraining": _drawn("retraining", claim="retraining"),
    "learning_rate": _drawn("learning_rate", claim="learning_rate"),
    "scale": View("report.figures:scale", claim="scale"),
    "drift": View("report.figures:drift", claim="drift"),
    "gain": View("report.figures:gain"),
    "validation_loss": View("report.figures:validation_loss"),
    "perplexity": View("report.figures:perplexity"),
    "zero_shot": View("report.figures:zero_shot", claim="zero_shot"),
}.items():
    register("figure", _name, _view)
