"""What callers of the library give it, a model directory and texts, as a config has them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from freelunch.errors import FreelunchError
from freelunch.inputs.models import read_object
from freelunch.plan.spec import RESULTS
from freelunch.results.artifacts import replacing


def directory(model: str | Path) -> Path:
    """A model directory, by its full path.

    Raises:
        FreelunchError: it is none.
    """
    path = Path(model).expanduser().resolve()
    if not (path / "config.json").is_file():
        raise FreelunchError(f"{path}: is no model directory (it has no config.json)")
    return path


def name_of(source: Path) -> str:
    """A directory's name as a model of a config can have it."""
    return re.sub(r"^[^A-Za-z0-9]+|[^A-Za-z0-9._-]", "-", source.name).lstrip("-._")[:100] or "model"


def dtype_of(source: Path) -> str:
    """What a model directory says its weights are."""
    config = read_object(source / "config.json")
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def store(work: Path, texts: Sequence[str], name: str) -> str:
    """Write texts to a file that is named by its contents; its path as a config has it, below ``work``.

    Raises:
        FreelunchError: they are no list of strings, or an empty one.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise FreelunchError("texts: are a list of strings")
    if not texts:
        raise FreelunchError("texts: there are none")
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()
    path = Path(RESULTS, "texts", hashlib.sha256(lines).hexdigest()[:16], name)
    if not (work / path).is_file():
        with replacing(work / path) as part:
            part.write_bytes(lines)
    return str(path)
