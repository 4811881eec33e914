"""Findings in words: sentences of numbers that are computed from the rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from freelunch.reporting import labels
from freelunch.reporting.comparisons import PRUNED, Group
from freelunch.reporting.estimates import Estimate, summary
from freelunch.reporting.style import printed

_MOST = 4
"""Panels whose numbers fit under a figure."""


def listed(pairs: Iterable[tuple[str, Estimate | None]]) -> str:
    """``matrix 43.1 ± 0.2, block 29.9``: errors where there are several seeds."""
    return ", ".join(f"{name} {shown(found)}" for name, found in pairs if found is not None)


def shown(found: Estimate | None) -> str:
    """A number with three digits, and its error over seeds."""
    if found is None:
        return "not measured"
    over_seeds = found.runs > 1 and found.stderr == found.stderr
    return printed(found.value) + (f" ± {found.stderr:.2g}" if over_seeds else "")


def against(group: Group) -> str:
    """``dense 14.1, not recovered 130``: what a comparison is measured against.

    Where the axis compared is one of pruning, what is not recovered has a perplexity for each of its values:
    ``not recovered: magnitude 801, wanda 130``.
    """
    dense = ("dense", summary(group.dense))
    if group.axis not in PRUNED:
        return listed([dense, ("not recovered", group.baseline())])
    alone = listed((labels.value(group.axis, value), group.baseline(value)) for value in group.values)
    return "; ".join([*([f"not recovered: {alone}"] if alone else []), listed([dense])])


def joined(sentences: Sequence[tuple[str, str]], most: int = _MOST) -> str:
    """One sentence per panel, each after its title; those beyond ``most`` are counted."""
    told = [f"{title.replace(chr(10), ', ')}: {text}." for title, text in sentences[:most]]
    rest = len(sentences) - len(told)
    return " ".join([*told, *([f"({rest} more above.)"] if rest else [])])
