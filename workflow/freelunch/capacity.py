"""Which stages of which models fit on which GPU and host: what ``python -m freelunch memory`` prints.

Everything is as a suite's defaults say, on an accelerator; windows and criteria are varied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .costs import Peak, memory
from .errors import FreelunchError
from .plan.config import Config, PerplexityTask, SuiteConfig, ZeroShotTask
from .plan.plan import make_plan, walk
from .plan.spec import Spec
from .plan.specs import EvaluationSpec, ModelSpec, PrunedSpec, ReconstructedSpec
from .plan.validity import check_name

GPUS = (24, 48, 80)
"""GiB of common cards."""
HOSTS = (64, 128)
"""GiB of hosts."""
USABLE = 0.9
"""Share of a memory that may be planned with: of a card, CUDA itself and gaps take the rest; of a host, the system."""
WINDOWS = ("matrix", "attention_mlp", "block", 2, 4, 8)
_NAMES = {window: f"{window} blocks" if isinstance(window, int) else window for window in WINDOWS}
_SUITE = "memory"


def peaks(config: Config, suite: str, models: Sequence[str]) -> dict[str, dict[str, Peak]]:
    """Memory by stage and by model, on an accelerator.

    Args:
        suite: whose defaults are taken, and its first perplexity.
        models: names of models of the config.

    Raises:
        FreelunchError: the suite or a model is not in the config, or the suite measures no perplexity.
    """
    check_name("suite", suite, config.suites)
    for model in models:
        check_name("model", model, config.models)
    measured = [task for task in config.suites[suite].evaluate if isinstance(task, PerplexityTask)]
    if not measured:
        raise FreelunchError(f"suites.{suite}.evaluate: measures no perplexity")
    task = measured[0].model_copy(update={"only": {}})
    defaults = config.suites[suite].defaults | {"model": list(models), "recovery": "none", "criterion": "wanda"}
    runs: list[dict[str, Any]] = [
        {"criterion": ["wanda", "sparsegpt"]},
        {"recovery": "reconstruct", "window": list(_NAMES)},
    ]
    planned = config.model_copy(
        update={
            "suites": {_SUITE: SuiteConfig(defaults=defaults, runs=runs, evaluate=(task,))},
            "default_suite": _SUITE,
            "execution": config.execution.model_copy(update={"device": "cuda"}),
        }
    )
    found: dict[str, dict[str, Peak]] = {}
    for spec in make_plan(planned).needed(_SUITE):
        for label, each in _labelled(spec):
            model = _model(each)
            found.setdefault(label, {}).setdefault(model, memory(planned, each))
    return {label: found[label] for label in _ORDER}


_ORDER = (
    "dense", "grams", "prune (wanda)", "prune (sparsegpt)", *(f"reconstruct ({name})" for name in _NAMES.values()),
    "perplexity", "zero-shot",
)  # fmt: skip


def _labelled(spec: Spec) -> Iterator[tuple[str, Spec]]:
    """The stages that are shown, by what they are called."""
    if spec.stage in ("dense", "grams"):
        yield spec.stage, spec
    elif isinstance(spec, PrunedSpec):
        yield f"prune ({spec.criterion})", spec
    elif isinstance(spec, ReconstructedSpec):
        yield f"reconstruct ({_NAMES[spec.window]})", spec
    elif isinstance(spec, EvaluationSpec) and spec.overlays:
        yield "perplexity", spec
        asked = ZeroShotTask(metric="zero_shot", tasks=("hellaswag",))
        yield "zero-shot", EvaluationSpec(subject=spec.subject, data=(), tasks=(asked,))


def _model(spec: Spec) -> str:
    """Which model it is a stage of."""
    return next(above.model for above in walk(spec) if isinstance(above, ModelSpec))


def tables(found: Mapping[str, Mapping[str, Peak]]) -> str:
    """Two tables in Markdown: GiB by stage, and what fits where."""
    models = list(next(iter(found.values())))
    lines = ["GiB of the GPU + of the host:", "", _row(["stage", *models]), _row(["---", *("---:" for _ in models)])]
    for label, peaks in found.items():
        cells = (f"{peaks[model].device / 2**30:.1f} + {peaks[model].host / 2**30:.1f}" for model in models)
        lines.append(_row([label, *cells]))
    lines += ["", f"What fits, with {USABLE:.0%} of a memory to plan with:", ""]
    lines += [_row(["memory", *models]), _row(["---", *("---" for _ in models)])]
    for kind, sizes, attribute in (("GPU", GPUS, "device"), ("host", HOSTS, "host")):
        for size in sizes:
            cells = (
                _fitting({label: getattr(peaks[model], attribute) for label, peaks in found.items()}, size)
                for model in models
            )
            lines.append(_row([f"{kind} of {size} GB", *cells]))
    return "\n".join(lines)


def _fitting(needs: Mapping[str, float], size: int) -> str:
    """What does not fit, or that all does."""
    without = [label for label, need in needs.items() if need > USABLE * size * 2**30]
    return f"all but {', '.join(without)}" if without else "all"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
