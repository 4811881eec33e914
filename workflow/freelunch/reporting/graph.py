"""The graph of a workflow's rules as SVG: layers from top to bottom, edges that follow from others left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from xml.sax.saxutils import escape

Edge = tuple[str, str]
_WIDTH, _HEIGHT, _GAP, _DROP = 132, 40, 24, 30
"""Of a box, and between boxes beside and below each other, in pixels."""
_MARGIN = 4


def svg(jobs: Mapping[str, int], edges: Sequence[Edge], title: str) -> str:
    """A drawing of rules with their numbers of jobs. Lines and letters have the colour of the text around.

    Args:
        jobs: number of jobs by rule.
        edges: from a rule to one that reads what it wrote; without cycles.
        title: what a screen reader says.
    """
    kept = reduced(edges)
    depth = depths(list(jobs), kept)
    routes = {edge: _route(edge, depth) for edge in kept}
    layers = _ordered(list(jobs), depth, list(routes.values()))
    widest = max(len(layer) for layer in layers)
    width = widest * (_WIDTH + _GAP) - _GAP + 2 * _MARGIN
    height = len(layers) * (_HEIGHT + _DROP) - _DROP + 2 * _MARGIN
    place = {}
    for row, layer in enumerate(layers):
        left = (width - len(layer) * (_WIDTH + _GAP) + _GAP) / 2
        for column, node in enumerate(layer):
            place[node] = (left + column * (_WIDTH + _GAP) + _WIDTH / 2, _MARGIN + row * (_HEIGHT + _DROP))
    lines = [_line([place[node] for node in route]) for route in routes.values()]
    boxes = [_box(name, count, *place[name]) for name, count in jobs.items()]
    head = (
        f'<svg class="graph" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{escape(title, {chr(34): "&quot;"})}" fill="none" stroke="currentColor">'
    )
    return "\n".join([head, *lines, *boxes, "</svg>"])


def reduced(edges: Sequence[Edge]) -> list[Edge]:
    """The edges without which something would no longer be reached."""
    unique = list(dict.fromkeys(edges))
    after: dict[str, set[str]] = {}
    for first, second in unique:
        after.setdefault(first, set()).add(second)

    def reaches(start: str, end: str) -> bool:
        return start == end or any(reaches(node, end) for node in after.get(start, ()))

    return [
        (first, second)
        for first, second in unique
        if not any(reaches(node, second) for node in after[first] - {second})
    ]


def depths(nodes: Sequence[str], edges: Sequence[Edge]) -> dict[str, int]:
    """The length of the longest way to each node."""
    above = {node: [first for first, second in edges if second == node] for node in nodes}

    def depth(node: str) -> int:
        return max((depth(first) + 1 for first in above[node]), default=0)

    return {node: depth(node) for node in nodes}


def _route(edge: Edge, depth: Mapping[str, int]) -> list[str]:
    """An edge as the places it goes through, one in every layer between."""
    first, second = edge
    between = [f"{first}>{second}@{layer}" for layer in range(depth[first] + 1, depth[second])]
    return [first, *between, second]


def _ordered(nodes: Sequence[str], depth: Mapping[str, int], routes: Sequence[Sequence[str]]) -> list[list[str]]:
    """Layers, each in the order of the mean place of what lies above."""
    layers: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for node in nodes:
        layers[depth[node]].append(node)
    above: dict[str, list[str]] = {}
    for route in routes:
        start = depth[route[0]]
        for step, (upper, lower) in enumerate(pairwise(route), start + 1):
            above.setdefault(lower, []).append(upper)
            if lower not in layers[step]:
                layers[step].append(lower)
    for upper_layer, layer in pairwise(layers):
        place = {node: column / len(upper_layer) for column, node in enumerate(upper_layer)}
        known = {node: [place[upper] for upper in above.get(node, ())] or [0.5] for node in layer}
        layer.sort(key=lambda node: sum(known[node]) / len(known[node]))
    return layers


def _line(points: Sequence[tuple[float, float]]) -> str:
    """A curve from the lower edge of the first box to the upper edge of the last, through the places between."""
    x, y = points[0]
    path = [f"M {x:g} {y + _HEIGHT:g}"]
    for place, (right, top) in enumerate(points[1:], 1):
        middle = (y + _HEIGHT + top) / 2
        path.append(f"C {x:g} {middle:g} {right:g} {middle:g} {right:g} {top:g}")
        if place < len(points) - 1:
            path.append(f"L {right:g} {top + _HEIGHT:g}")
        x, y = right, top
    return f'<path d="{" ".join(path)}" opacity="0.6"/>'


def _box(name: str, count: int, x: float, y: float) -> str:
    text = f"{count} job" + ("" if count == 1 else "s")
    return (
        f'<rect x="{x - _WIDTH / 2:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="6"/>'
        f'<g fill="currentColor" stroke="none" text-anchor="middle" font-family="sans-serif">'
        f'<text x="{x:g}" y="{y + 17:g}" font-size="13">{escape(name)}</text>'
        f'<text x="{x:g}" y="{y + 32:g}" font-size="11" opacity="0.75">{text}</text></g>'
    )
