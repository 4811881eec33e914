"""The trained parameters of some blocks: which they are, in float32, under their masks, and what is saved of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from freelunch.errors import FreelunchError
from freelunch.pruning.matrix import named_generator
from freelunch.recover.parametrizations import LowRank, Parametrization, parse_parametrization
from freelunch.recover.windows import targeted

if TYPE_CHECKING:
    from freelunch.plan.specs import Training

MaskOf = Callable[[str], Tensor | None]
"""Boolean mask of a tensor, True = kept, by its full name; None if it is not pruned."""


class _LowRankWeight(nn.Module):
    """A weight as ``torch.nn.utils.parametrize`` computes it whenever its layer asks for it."""

    def __init__(self, method: LowRank, mask: Tensor, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.method = method
        self.register_buffer("mask", mask, persistent=False)
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)
        self.saved: Tensor | None = None
        """Stands for the weight while what is saved is computed with."""

    def forward(self, weight: Tensor) -> Tensor:
        if self.saved is not None:
            return self.saved
        # in float32, whatever the products of the window run in: rounded once, as the merged weight will be
        with torch.autocast(weight.device.type, enabled=False):
            return self.method.effective(weight.float(), self.mask, self.down, self.up)  # type: ignore[arg-type]

    def merged(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            return self.method.merged(weight.float(), self.mask, self.down, self.up)  # type: ignore[arg-type]


class Trainable:
    """Parameters of loaded blocks that are trained. Close it before the blocks are given back.

    Args:
        blocks: full name, module and the names of the parameters inside of the window, for every block.
        dtype: of the model.

    Attributes:
        parameters: what the optimiser sees: trained tensors by full name, and the factors of low-rank weights.
        masks: of the trained matrices by full name.

    Raises:
        FreelunchError: there is nothing to train.
    """

    def __init__(
        self, blocks: Iterable[tuple[str, nn.Module, set[str]]], mask_of: MaskOf, training: Training,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self._parts: tuple[Parametrization, ...] = parse_parametrization(training.parametrization)
        self._targets, self._seed, self._dtype, self._mask_of = training.targets, training.seed, dtype, mask_of
        self.parameters: dict[str, nn.Parameter] = {}
        self.masks: dict[str, Tensor] = {}
        self._whole: dict[str, nn.Parameter] = {}
        self._low_rank: dict[str, tuple[nn.Linear, _LowRankWeight, Tensor]] = {}
        self._added: list[nn.Linear] = []
        for name, block, inside in blocks:
            self._enter(name, block, inside)
        # where targets were chosen, some windows may hold none of them
        if not self.parameters and training.targets == "all":
            raise FreelunchError(
                f"parametrization {training.parametrization} finds nothing to train; biases(add=1) gives biases to "
                "layers without"
            )
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)

    @property
    def exact(self) -> bool:
        """Whether what is saved computes what training computed."""
        return all(part.exact for part in self._parts)

    @property
    def count(self) -> int:
        """Numbers that are trained; of masked weights those that are kept."""
        masked = sum(
            int(mask.count_nonzero()) - mask.numel() for name, mask in self.masks.items() if name in self._whole
        )
        return sum(parameter.numel() for parameter in self.parameters.values()) + masked

    def mask_gradients(self) -> None:
        """Pruned weights start at zero and, without a gradient, stay there."""
        for name, parameter in self._whole.items():
            if name in self.masks and parameter.grad is not None:
                # bytes are cast to float32 with vector instructions, booleans one by one
                parameter.grad.mul_(self.masks[name].view(torch.uint8))

    def state(self) -> dict[str, Tensor]:
        """What would be saved now: merged, rounded to the model's dtype; by full name."""
        found = {name: parameter.detach().to(self._dtype, copy=True) for name, parameter in self._whole.items()}
        for name, (_, weight, original) in self._low_rank.items():
            found[name] = weight.merged(original).to(self._dtype)
        return found

    def adapters(self) -> dict[str, Tensor]:
        """The factors of low-rank weights as they are now, float32: ``<weight>.down`` and ``<weight>.up``."""
        names = [f"{name}.{factor}" for name in self._low_rank for factor in ("down", "up")]
        return {name: self.parameters[name].detach().clone() for name in names}

    @contextmanager
    def saved(self, state: dict[str, Tensor]) -> Iterator[None]:
        """Compute with a :meth:`state` instead of what is being trained."""
        masters = {name: parameter.data for name, parameter in self._whole.items()}
        try:
            for name, parameter in self._whole.items():
                parameter.data = state[name].float()
            for name, (_, weight, _) in self._low_rank.items():
                weight.saved = state[name].float()
            yield
        finally:
            for name, parameter in self._whole.items():
                parameter.data = masters[name]
            for _, adapter, _ in self._low_rank.values():
                adapter.saved = None

    def check(self, state: dict[str, Tensor]) -> None:
        """Raise if a pruned weight of a state is not zero."""
        for name, mask in self.masks.items():
            revived = int((state[name] != 0).logical_and(~mask).sum())
            if revived:
                raise FreelunchError(f"{revived} pruned weights of {name} are not zero")

    def close(self) -> None:
        """Give the blocks their own kind of weights back, and take added biases away: an overlay brings those."""
        for layer, _, _ in self._low_rank.values():
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        for layer in self._added:
            layer.register_parameter("bias", None)
        self._added.clear()
        self.parameters.clear()
        self._low_rank.clear()
        self._whole.clear()

    def _enter(self, prefix: str, block: nn.Module, inside: set[str]) -> None:
        layers = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
        if any(part.adds_biases for part in self._parts):
            for name, layer in layers.items():
                if f"{name}.weight" in inside and layer._parameters["bias"] is None and targeted(name, self._targets):
                    layer.bias = nn.Parameter(torch.zeros(layer.out_features, device=layer.weight.device))
                    inside = inside | {f"{name}.bias"}
                    self._added.append(layer)
        for name, parameter in list(block.named_parameters()):
            owner, _, kind = name.rpartition(".")
            full = f"{prefix}.{name}"
            if parameter.ndim < 2:
                # norms of parts that run, to no effect, in front of a window too: they read its float32 states
                parameter.data = parameter.data.float()
            if name not in inside:
                continue
            if owner in layers and kind == "weight":
                self._enter_matrix(full, owner, layers[owner])
                continue
            wanted = any(part.biases if owner in layers else part.norms for part in self._parts)
            if wanted and (owner not in layers or targeted(owner, self._targets)):
                parameter.data = parameter.data.to(torch.float32, copy=True)
                self.parameters[full] = self._whole[full] = parameter

    def _enter_matrix(self, full: str, name: str, layer: nn.Linear) -> None:
        method = next((part for part in self._parts if part.matrices), None)
        if method is None or not targeted(name, self._targets):
            return
        weight = layer.weight
        mask = self._mask_of(full)
        if mask is not None:
            self.masks[full] = mask.to(weight.device)
        if not isinstance(method, LowRank):
            master = layer.get_parameter("weight")
            master.data = master.data.to(torch.float32, copy=True)
            if mask is not None:
                master.data.mul_(self.masks[full])
            self.parameters[full] = self._whole[full] = master
            return
        rows, columns = weight.shape
        generator = named_generator(self._seed, full)
        factors = (factor.to(weight.device) for factor in method.factors(rows, columns, generator))
        ones = self.masks.get(full, torch.ones_like(weight, dtype=torch.bool))
        low_rank = _LowRankWeight(method, ones, *factors)
        # a new tensor: the loaded one may be that of the source
        original = layer.weight.data = weight.data.masked_fill(~ones, 0)
        parametrize.register_parametrization(layer, "weight", low_rank, unsafe=True)
        layer.get_parameter("parametrizations.weight.original").requires_grad_(False)
        self._low_rank[full] = (layer, low_rank, original)
        self.parameters |= {f"{full}.down": low_rank.down, f"{full}.up": low_rank.up}
