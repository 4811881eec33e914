"""What axes, values and numbers are called, in which order values come, and what captions say: ``text.yaml`` in use."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from freelunch.errors import FreelunchError
from freelunch.pruning.patterns import NM, Structured, parse_pattern

TEXT: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("text.yaml").read_text(encoding="utf-8"))
SOURCE = next(iter(TEXT["papers"]))
NOT_RECOVERED = "none"
_VALUES: dict[str, dict[str, str]] = TEXT["values"] | {"variant": TEXT["values"]["window"]}
_SELF_EXPLAINING = (
    "model", "criterion", "pattern", "variant", "dataset", "window", "parametrization", "recovery", "family",
    "criteria",
)  # fmt: skip
_CONTROL = re.compile(r"matrix \((.+)\)")
_METHOD = re.compile(r"([^+(]+)(\([^)]*\))?")


def control(targets: str) -> str:
    """What the window ``matrix`` is called where it trains some matrices alone: ``matrix (k_proj + up_proj)``."""
    return f"matrix ({targets})"


def is_control(window: str) -> bool:
    """Whether a window is called by :func:`control`."""
    return _CONTROL.fullmatch(window) is not None


def axis(name: str) -> str:
    """Heading of a column of the rows."""
    return str(TEXT["axes"].get(name, name.replace("_", " ").capitalize()))


def value(name: str, of: Any) -> str:
    """What a value of an axis is called: ``ria(alpha=1)`` is RIA (alpha=1), window ``3`` is 3 blocks."""
    text, listed = str(of), _VALUES.get(name, {})
    if text in listed:
        return listed[text]
    if name in ("window", "variant"):
        if match := _CONTROL.fullmatch(text):
            return listed["matrix_control"].format(match[1])
        return listed["blocks"].format(text) if text.isdecimal() else text
    if name == "parameters":
        return compact(float(of))
    if listed and isinstance(of, str):
        words = listed | TEXT["parts"] if name == "parametrization" and "+" in text else listed
        parts = [(match[1].strip(), _ends(match[2] or "")) for match in _METHOD.finditer(text) if match[1].strip()]
        return " + ".join(f"{words.get(part, part)} {settings}".strip() for part, settings in parts)
    return f"{of:g}" if isinstance(of, float) and math.isfinite(of) else text


def described(name: str, of: Any) -> str:
    """A value with its axis, where the value alone does not say what it is."""
    if name == "length":
        return f"{of} tokens"
    return value(name, of) if name in _SELF_EXPLAINING else f"{axis(name)}: {value(name, of)}"


@cache
def order(name: str, of: Any) -> tuple[Any, ...]:
    """Sorting key of an axis' values: listed ones as listed, patterns by kind and sparsity, names by the numbers in
    them, what is missing first."""
    if name in ("window", "variant"):
        listed, text = list(_VALUES["window"]), str(of)
        known = "blocks" if text.isdecimal() else "matrix_control" if is_control(text) else text
        rank = listed.index(known) if known in listed else len(listed)
        return (rank, int(text) if text.isdecimal() else 0, text)
    if not isinstance(of, str):
        return (-1, 0.0, "") if pd.isna(of) else (0, float(of), "")
    if name in _VALUES:
        listed, base = list(_VALUES[name]), re.split(r"\(| \+", of)[0]
        rank = listed.index(of) if of in listed else listed.index(base) if base in listed else len(listed)
        return (0, float(rank), of)
    if name == "learning_rate":
        return (1, 0.0, of) if of == "auto" else (0, float(of), "")
    if name == "pattern":
        try:
            pattern = parse_pattern(of)
        except FreelunchError:
            return (3, 0.0, of)
        return (1 if isinstance(pattern, NM) else 2 if isinstance(pattern, Structured) else 0, pattern.sparsity, of)
    # llama-3m before llama-15m
    return (1, 0.0, re.sub(r"\d+(\.\d+)?", lambda digits: f"{float(digits[0]):020.6f}", of))


def counted(count: int, what: str) -> str:
    """``1 window``, ``2 windows``."""
    return f"{count} {what}" + ("" if count == 1 else "s")


def compact(number: float) -> str:
    """A count in three digits: 512, 32.8k, 1.05M, 6.7G, 1.2P."""
    for unit, name in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"


def number(of: float) -> str:
    """Two decimals up to 100, four significant digits below 1 and above; powers of ten from 100,000 up."""
    if not math.isfinite(of):
        return "NaN" if math.isnan(of) else "∞" if of > 0 else "-∞"
    size = abs(of)
    if size >= 99_999.5:
        return power(f"{of:.3e}")
    if size < 1:
        return f"{of:#.4g}" if size else "0"
    return f"{of:.2f}" if size < 99.995 else f"{of:.1f}" if size < 999.95 else f"{of:,.0f}"


def printed(of: float) -> str:
    """Three significant digits, for figures and verdicts: 25.0, 118, 1,121, 1.2×10⁶."""
    if not math.isfinite(of):
        return "NaN" if math.isnan(of) else "∞"
    if of >= 999_500:
        return power(f"{of:.1e}")
    return f"{of:,.0f}" if of >= 99.95 else f"{of:#.3g}"


def tick(of: float) -> str:
    """0.5, 20, 1,000; powers of ten from a million up and below a thousandth."""
    return power(f"{of:.1e}") if of >= 999_500 or 0 < of < 9.99e-4 else f"{of:,.12g}"


def power(scientific: str) -> str:
    """``1.2e+06`` as 1.2×10⁶."""
    mantissa, exponent = scientific.split("e")
    times = "" if float(mantissa) == 1 and len(mantissa) < 4 else f"{mantissa.removesuffix('.0')}×"
    return f"{times}10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def claim(name: str) -> str:
    """A claim with its source."""
    about = TEXT["claims"][name]
    return f"Claim ({about.get('source', SOURCE)}): {about['claim']}"


def caption(kind: str, name: str, reading: str = "", notes: Iterable[str] = (), claimed: str = "") -> list[str]:
    """Paragraphs on a view: the claim that it is about, what it shows, how to read it, what is particular here."""
    words = TEXT["views"].get(name, {})
    shows = [words.get("shows", ""), words.get(kind, ""), TEXT["reading"].get(f"{reading}_{kind}", ""),
             TEXT["reading"].get(reading, ""), *notes]  # fmt: skip
    return [*([claim(claimed)] if claimed else []), " ".join(part for part in shows if part)]


def title(name: str) -> str:
    """What a view is called."""
    return str(TEXT["views"].get(name, {}).get("title", name.replace("_", " ").capitalize()))


def _ends(settings: str) -> str:
    """A list of numbers, one for each block, by its ends."""
    numbers = settings.strip("()").split(", ")
    if len(numbers) < 4 or "=" in settings:
        return settings
    return f"({min(numbers, key=float)} to {max(numbers, key=float)})"
