"""From tidy rows to tables and figures: every view of a suite is a function of its rows.

Nothing heavy is imported here, and builders are imported by name when asked for: a job that draws one figure depends
on that figure's module and on no other's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from freelunch.errors import FreelunchError, suggest
from freelunch.reporting.names import FIGURE_NAMES, TABLE_NAMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    # absolute: provenance.sources follows relative imports, and a figure does not depend on the tables
    from freelunch.reporting.table import Table

    TABLES: dict[str, Callable[[DataFrame], Table]]
    FIGURES: dict[str, Callable[[DataFrame], Figure]]

__all__ = ["FIGURES", "FIGURE_NAMES", "TABLES", "TABLE_NAMES", "about", "describe", "draw", "tabulate"]


def tabulate(name: str, rows: DataFrame) -> Table:
    """Build a table of a suite by name, with what is said about it; ``rendering.render`` turns it into text.

    Raises:
        FreelunchError: there is no such table, or the rows lack what it shows.
    """
    if name not in TABLE_NAMES:
        raise FreelunchError(f"{name!r} is not a table; {suggest(name, TABLE_NAMES)}")
    built = cast("Table", import_module(f".tables.{name}", __name__).build(rows))
    return replace(built, about=about(name, rows))


def draw(name: str, rows: DataFrame) -> Figure:
    """Draw a figure of a suite by name; ``style.save`` writes it.

    Raises:
        FreelunchError: there is no such figure, or the rows lack what it shows.
    """
    if name not in FIGURE_NAMES:
        raise FreelunchError(f"{name!r} is not a figure; {suggest(name, FIGURE_NAMES)}")
    return cast("Figure", import_module(f".figures.{name}", __name__).draw(rows))


def describe(name: str, rows: DataFrame) -> str:
    """The claim that a table or figure is about and what the rows say, on two lines; empty if it is about none.

    A table and a figure of one name say the same: it is the figure's ``caption``, or the table's if there is no figure.

    Raises:
        FreelunchError: as ``draw`` and ``tabulate``.
    """
    if name not in (*FIGURE_NAMES, *TABLE_NAMES):
        raise FreelunchError(f"{name!r} is no view; {suggest(name, {*FIGURE_NAMES, *TABLE_NAMES})}")
    module = _module(name)
    return cast(str, module.caption(rows)) if hasattr(module, "caption") else ""


def about(name: str, rows: DataFrame) -> str:
    """What ``describe`` says, and on a line of its own how the runs that are shown were made and measured.

    Raises:
        FreelunchError: as ``describe``.
    """
    from freelunch.reporting.protocol import protocol

    said, module = describe(name, rows), _module(name)
    selected = module.selected(rows) if hasattr(module, "selected") else rows
    return "\n".join(part for part in (said, protocol(selected)) if part)


def _module(name: str) -> Any:
    return import_module(f".{'figures' if name in FIGURE_NAMES else 'tables'}.{name}", __name__)


def __getattr__(name: str) -> Any:
    if name == "TABLES":
        return {table: import_module(f".tables.{table}", __name__).build for table in TABLE_NAMES}
    if name == "FIGURES":
        return {figure: import_module(f".figures.{figure}", __name__).draw for figure in FIGURE_NAMES}
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
