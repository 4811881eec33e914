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
        _count(root, {})
        return loader.construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        parts = [getattr(error, "context", None), getattr(error, "problem", None)]
        raise FreelunchError(f"{line} {', '.join(filter(None, parts)) or first_line(error)}") from None
    except RecursionError:
        raise FreelunchError(" is nested too deeply") from None
    except FreelunchError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        # the date 2001-99-99, an integer of 5000 digits, `!!bool perhaps`
        raise FreelunchError(f" a value is not what it is written as: {first_line(error)}") from None


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """How many values a node stands for; ``counts`` has those of nodes met before, 0 of one that is being counted."""
    line = f" line {node.start_mark.line + 1}:"
    if id(node) in counts:
        if not counts[id(node)]:
            raise FreelunchError(f"{line} an anchor stands for something that it is a part of")
        return counts[id(node)]
    counts[id(node)] = 0
    values: list[yaml.Node] = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        values = [each for pair in node.value for each in pair]
        keys: set[tuple[str, str]] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in keys:
                at = key.start_mark.line + 1
                raise FreelunchError(f" line {at}: the key {key.value!r} is there twice; keep one")
            keys.add((key.tag, key.value))
    count = 1 + sum(_count(value, counts) for value in values)
    if count > LARGEST:
        raise FreelunchError(f"{line} its anchors stand for more than {LARGEST:,} values; write fewer")
    counts[id(node)] = count
    return count
