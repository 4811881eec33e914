"""Reading YAML that people wrote or were given: every key is there once, and what it stands for has a limited size.

Anchors may be used; a few lines of them can stand for more values than any memory holds, so that values are counted
before they are made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from freelunch.errors import FreelunchError, first_line

LARGEST = 1_000_000
"""Values of a file, with what its anchors stand for; a large config has some thousands."""


def read_yaml(path: Path) -> Any:
    """Parse a YAML file.

    Raises:
        FreelunchError: the file is missing, is not YAML, has a key twice, or stands for too much; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FreelunchError(f"cannot read {path}: {error}") from None
    try:
        return parse_yaml(text)
    except FreelunchError as error:
        raise FreelunchError(f"{path}:{error}") from None


def parse_yaml(text: str) -> Any:
    """The values of a YAML document.

    Raises:
        FreelunchError: see :func:`read_yaml`; begins with a space, and the line where there is one.
    """
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _count(root, {}, set())
        return loader.construct_document(root)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}:" if where else ""
        told = [text for text in (getattr(error, "context", None), getattr(error, "problem", None)) if text]
        raise FreelunchError(f"{line} {', '.join(told) or first_line(error)}") from None
    except RecursionError:
        raise FreelunchError(" is nested too deeply") from None
    except FreelunchError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        # the date 2001-99-99, an integer of 5000 digits, `!!bool perhaps`
        raise FreelunchError(f" a value is not what it is written as: {first_line(error)}") from None


def _count(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """How many values a node stands for; ``known``: those of nodes that were counted before."""
    place = id(node)
    if place in known:
        return known[place]
    if place in above:
        raise FreelunchError(f" line {_line(node)}: an anchor stands for something that it is a part of")
    above.add(place)
    count = 1
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        count += sum(_count(key, known, above) + _count(value, known, above) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        count += sum(_count(value, known, above) for value in node.value)
    above.remove(place)
    if count > LARGEST:
        raise FreelunchError(f" line {_line(node)}: its anchors stand for more than {LARGEST:,} values; write fewer")
    known[place] = count
    return count


def _check_keys(node: yaml.MappingNode) -> None:
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in seen:
                raise FreelunchError(f" line {_line(key)}: the key {key.value!r} is there twice; keep one")
            seen.add((key.tag, key.value))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
