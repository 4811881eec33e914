"""A pruned or recovered network as a model of its own: its config and tensors, without the units that went everywhere.

What the config of a family can say is found by trying: a skeleton on the meta device must have the tensors that stay.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from freelunch.engine.overlays import Masked, TensorSource
from freelunch.errors import FreelunchError
from freelunch.pruning.structured import Units

Skeleton = dict[str, Tensor]
"""The tensors of a model by name, on the meta device, tied ones once."""


def skeleton(config: PretrainedConfig) -> Skeleton:
    """The tensors that a model of this config has."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if first.setdefault(id(tensor), name) == name}


@dataclass(frozen=True)
class Cut:
    """What stays of the matrices around units, by matrix: rows with the entries of their bias, and columns."""

    rows: dict[str, Tensor] = field(default_factory=dict)
    columns: dict[str, Tensor] = field(default_factory=dict)

    def apply(self, name: str, tensor: Tensor) -> Tensor:
        matrix, _, kind = name.rpartition(".")
        if matrix in self.rows:
            tensor = tensor[self.rows[matrix]]
        return tensor[:, self.columns[matrix]] if matrix in self.columns and kind == "weight" else tensor


@dataclass(frozen=True)
class Export:
    """A model that is ready to be written: a source of its tensors, each made when it is asked for.

    Attributes:
        config: of the model.
        skeleton: its tensors on the meta device.
        reasons: why heads or channels that could go are there, as zeros.
    """

    config: PretrainedConfig
    skeleton: Skeleton
    reasons: tuple[str, ...]
    cut: Cut
    source: TensorSource
    added: frozenset[str]
    """Biases that came with a switch of the config; those that the source lacks are zero."""

    @property
    def smaller(self) -> bool:
        """Whether any matrix lost rows or columns."""
        return bool(self.cut.rows)

    def __contains__(self, name: object) -> bool:
        return name in self.skeleton

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor of the model."""
        return tuple(self.skeleton[name].shape)

    def load(self, name: str) -> Tensor:
        """A tensor of the model.

        Raises:
            FreelunchError: the source lacks it, or has one of another shape.
        """
        wanted = self.skeleton[name]
        if name in self.added and name not in self.source:
            return torch.zeros(wanted.shape, dtype=wanted.dtype)
        tensor = self.cut.apply(name, self.source.load(name)).to(wanted.dtype)
        if tensor.shape != wanted.shape:
            raise FreelunchError(f"tensor {name} is {list(tensor.shape)}, its config says {list(wanted.shape)}")
        return tensor


def export(
    config: PretrainedConfig, dtype: torch.dtype, source: TensorSource, masks: Masked, units: Sequence[Sequence[Units]]
) -> Export:
    """Plan an export.

    Args:
        config: of the dense model.
        dtype: what weights are cast to.
        source: tensors with all overlays applied.
        masks: knows which weights are pruned.
        units: of every block, to be cut out where all blocks keep as many of a kind; none: everything stays.

    Raises:
        FreelunchError: pruning added a bias, and the config has no place for it.
    """
    config = copy.deepcopy(config)
    config.dtype = dtype
    before = skeleton(config)
    config, whole = _with_biases(config, before, source)
    cut, reasons = Cut(), []
    for blocks in zip(*units, strict=True):
        kept = [kept_units(each, masks) for each in blocks]
        counts = sorted({int(each.sum()) for each in kept})
        why = [f"blocks keep from {counts[0]} to {counts[-1]} of {blocks[0].count}"]
        if len(counts) == 1:
            part, ways, why = *_ways(config, blocks, kept), []
            both = Cut(cut.rows | part.rows, cut.columns | part.columns)
            for changes in ways:
                try:
                    found = _changed(config, **changes)
                    different = _difference(whole, both, skeleton(found))
                except Exception as error:  # what a family cannot be, it refuses in ways of its own
                    different = str(error).strip().splitlines()[-1].strip()
                if not different:
                    config, cut, why = found, both, []
                    break
                why.append(f"with {', '.join(f'{key} {value}' for key, value in changes.items())}: {different}")
            why = why or ([] if ways or counts == [blocks[0].count] else ["the model would not have fewer weights"])
        reasons += [f"{blocks[0].kind} stay, as zeros: {each}" for each in why[:1]]
    return Export(config, skeleton(config), tuple(reasons), cut, source, frozenset(whole.keys() - before.keys()))


def kept_units(units: Units, masks: Masked) -> Tensor:
    """Which units of one kind in one block stay ``[count]``: those whose columns are not all pruned."""
    mask = masks.mask(f"{units.consumer}.weight")
    assert mask is not None
    return mask.any(0).reshape(units.count, units.width).any(1)


def _changed(config: PretrainedConfig, **changes: Any) -> PretrainedConfig:
    found: PretrainedConfig = type(config).from_dict({**config.to_dict(), **changes})
    found.dtype = config.dtype
    return found


def _difference(whole: Skeleton, cut: Cut, found: Skeleton) -> str:
    """What tells a skeleton from the one that a cut leaves of another; empty if nothing does."""
    for name in sorted(whole.keys() | found.keys()):
        there = list(found[name].shape) if name in found else None
        wanted = list(cut.apply(name, whole[name]).shape) if name in whole else None
        if there != wanted:
            return f"{name} is {there}, not {wanted}"
    return ""


def _with_biases(config: PretrainedConfig, before: Skeleton, source: TensorSource) -> tuple[PretrainedConfig, Skeleton]:
    """The config with its switches set so that there is a place for every bias that pruning added and is not zero."""
    names = [f"{name.removesuffix('.weight')}.bias" for name in before if name.endswith(".weight")]
    missing = [name for name in names if name not in before and name in source and source.load(name).any()]
    now = before
    for key in [key for key, value in config.to_dict().items() if "bias" in key and value is False]:
        trial = _changed(config, **{key: True})
        gained = (found := skeleton(trial)).keys() - now.keys()
        if now.keys() <= found.keys() and gained & set(missing) and all(name.endswith(".bias") for name in gained):
            config, now = trial, found
    if lost := [name for name in missing if name not in now]:
        raise FreelunchError(
            f"{lost[0]}: pruning added this bias, and the config of this model ({config.model_type}) has no place for "
            f"it ({len(lost)} biases in all); export a run without refinement bias"
        )
    return config, now


def _ways(
    config: PretrainedConfig, blocks: Sequence[Units], kept: Sequence[Tensor]
) -> tuple[Cut, list[dict[str, int]]]:
    """The cut that leaves the units that stay, as many in every block, and changes of the config that may say so.

    There are none if nothing goes, or if no weights are saved: a key-value head may serve several heads, but in all
    blocks equally many. Where it would not, its rows are repeated for each of them.
    """
    stay, count = [each.nonzero().flatten() for each in kept], blocks[0].count
    group = max(blocks[0].producers.values())
    served = [each.reshape(-1, group).sum(1) for each in kept]
    sizes = {tuple(each[each > 0].tolist()) for each in served}
    equal = len(sizes) == 1 and len(set(*sizes)) == 1
    shared = [each.nonzero().flatten() if equal else units // group for each, units in zip(served, stay, strict=True)]
    cut, size, pairs = Cut(), len(stay[0]), len(shared[0])
    for each, units, serving in zip(blocks, stay, shared, strict=True):
        inside = torch.arange(each.width)
        cut.columns[each.consumer] = (units.unsqueeze(1) * each.width + inside).flatten()
        for name, sharing in each.producers.items():
            rows = units if sharing == 1 else serving
            cut.rows[name] = (rows.unsqueeze(1) * each.width + inside).flatten()
    if size + pairs >= count + count // group:
        return cut, []
    if blocks[0].kind == "channels":
        values = config.to_dict().items()
        return cut, [{key: size} for key, value in values if type(value) is int and value == count]
    grouped = {"num_key_value_heads": pairs} if hasattr(config, "num_key_value_heads") else {}
    return cut, [{"num_attention_heads": size, **grouped, "head_dim": blocks[0].width}]
