"""A suite as it was understood: what all of its runs have in common, what tells them apart, and what it reads."""

from __future__ import annotations

from typing import Any

import yaml

from .plan import Plan
from .section import Section
from .specs import ClassifierSpec, DataSpec, ImagesSpec, ModelSpec


def resolved(plan: Plan, suite: str) -> dict[str, Any]:
    """The suite with every default filled in; how jobs run is left out, since it changes no result.

    ``shared`` are the axes with one value in all runs, ``runs`` the others, by the name of the run.
    """
    config = plan.config.suites[suite]
    axes = {run.name: run.axes.model_dump(mode="json") for run in plan.runs[suite] if run.axes is not None}
    # language models and classifiers have axes of their own
    names = list(dict.fromkeys(name for found in axes.values() for name in found))
    shared = [name for name in names if len({repr(found.get(name)) for found in axes.values()}) == 1]
    specs = plan.needed(suite)
    return {
        "suite": suite,
        "description": config.description,
        "models": {spec.model: _given(spec.source) for spec in specs if isinstance(spec, ModelSpec)},
        "data": {spec.data: _given(spec.source) for spec in specs if isinstance(spec, DataSpec)},
        **_some("images", {spec.images: _given(spec.source) for spec in specs if isinstance(spec, ImagesSpec)}),
        **_some("classifiers", {s.classifier: _given(s.recipe) for s in specs if isinstance(s, ClassifierSpec)}),
        "shared": {name: next(iter(axes.values())).get(name) for name in shared},
        "runs": {
            run: {name: found[name] for name in names if name in found and name not in shared}
            for run, found in axes.items()
        },
        "evaluate": [task.model_dump(mode="json") for task in config.evaluate],
        "tables": list(config.tables),
        "figures": list(config.figures),
    }


def as_yaml(value: Any) -> str:
    """YAML in the order given, the axes of a run in a line or two."""
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None))


def _some(key: str, value: dict[str, Any]) -> dict[str, Any]:
    return {key: value} if value else {}


def _given(source: Section) -> dict[str, Any]:
    return source.model_dump(mode="json", exclude_none=True)
