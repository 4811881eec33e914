"""Retraining, what local reconstruction is measured against: the pruned model as a whole, on what it predicts.

Cross entropy of the next token, or distillation: KL divergence from the dense model's prediction. Masks stay fixed, and
embedding, last norm and head are those of the dense model. A distribution to distil from is the head's, on the dense
states behind the last block, so that no second model is run. All blocks are in memory, only what is trained in float32;
the activations of a block are computed again in the backward pass.

A model is trained from random weights the same way (:func:`pretrain`): all parameters, on the next token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from freelunch.engine.blocks import call_block
from freelunch.engine.streaming import Network
from freelunch.engine.transfers import Sent, Uploads
from freelunch.errors import FreelunchError, naming
from freelunch.recover import losses
from freelunch.recover.schedule import VALIDATION_TOKENS
from freelunch.recover.trainable import MaskOf, Trainable
from freelunch.recover.training import Keeper, Objective, Trained, Trainer, compiled

if TYPE_CHECKING:
    from freelunch.plan.specs import Training

WHERE = "model"


def retrain(
    network: Network, tokens: Mapping[str, Tensor], dense: Mapping[str, Tensor], mask_of: MaskOf, training: Training,
    keeper: Keeper | None = None, recompute: bool = True, compile_: bool = False,
) -> Trained:  # fmt: skip
    """Train all blocks of ``network``, the pruned model, under the masks that ``mask_of`` gives by name.

    Args:
        tokens: ``[sequences, length]`` of the splits ``calibration`` and ``validation``.
        dense: of both, dense states ``[sequences, length, width]`` behind the last block; only loss ``kl`` looks.
        recompute: whether activations are computed again in the backward pass.
        compile_: whether blocks are compiled.

    Raises:
        FreelunchError: there is nothing to train, a loss is NaN or infinite (names the step), or a trained tensor is
            not zero where it is pruned.
    """
    with ExitStack() as loaded:
        blocks = [loaded.enter_context(network.block(index)) for index in range(len(network.blocks))]
        # the dense pass has embedded, and checked, the same tokens
        embed = loaded.enter_context(network.embedding(checked=False))
        head = loaded.enter_context(network.head())
        inside = [
            (network.block_name(index), block, {name for name, _ in block.named_parameters()})
            for index, block in enumerate(blocks)
        ]
        with naming(WHERE):
            trainable = Trainable(inside, mask_of, training, network.dtype)
        loaded.callback(trainable.close)
        if not trainable.parameters:
            raise FreelunchError(f"{WHERE}: targets {training.targets} and parametrization {training.parametrization} "
                                 "leave nothing to train")  # fmt: skip
        objective = _Predicting(network, blocks, embed, head, tokens, dense if training.loss == "kl" else {}, recompute)
        loaded.enter_context(compiled(blocks, compile_))
        return Trainer(trainable, objective, training, WHERE, 0, keeper).train()


class _Predicting(Objective):
    """How badly the network predicts the next token."""

    def __init__(
        self, network: Network, blocks: list[nn.Module], embed: Callable[[Tensor], Tensor],
        head: Callable[[Tensor], Tensor], tokens: Mapping[str, Tensor], dense: Mapping[str, Tensor], recompute: bool,
    ) -> None:  # fmt: skip
        super().__init__(tokens, VALIDATION_TOKENS["retrain"])
        self._network, self._blocks, self._embed, self._head = network, blocks, embed, head
        self._tokens, self._dense, self._recompute = tokens, dense, recompute
        self._uploads = Uploads(network.copies)

    def load(self, split: str, rows: Tensor) -> tuple[Sent, Sent | None]:
        tokens = self._uploads.send(self._tokens[split], rows, torch.long)
        return tokens, self._uploads.send(self._dense[split], rows, self._network.products) if self._dense else None

    def loss(self, batch: tuple[Sent, Sent | None]) -> Tensor:
        tokens, dense = batch[0].received(), batch[1]
        with self._network.autocast():
            # the head is not trained, and sees states as evaluation does
            logits = self._head(self._run(self._embed(tokens).float())).float()
            if dense is None:
                return losses.cross_entropy(logits, tokens)
            with torch.no_grad():
                target = self._head(dense.received()).float()
        return losses.kl(logits, target)

    def _run(self, hidden: Tensor) -> Tensor:
        calls = self._network.calls(*hidden.shape[:2])
        for block, call in zip(self._blocks, calls, strict=True):
            if self._recompute and torch.is_grad_enabled():
                recomputed: Any = checkpoint(call_block, block, hidden, call, use_reentrant=False)
                hidden = recomputed
            else:
                hidden = call_block(block, hidden, call)
        return hidden


# --- from random weights ---------------------------------------------------------------------------------------------


def pretrain(
    model: Any, tokens: Mapping[str, Tensor], training: Training, dtype: torch.dtype, products: torch.dtype, where: str,
    keeper: Keeper | None = None, weight_decay: float = 0.0,
) -> Trained:  # fmt: skip
    """Train all parameters of ``model``, which is float32 and is changed.

    Args:
        tokens: ``[sequences, length]`` of the splits ``calibration`` and ``validation``.
        dtype: of what is saved; what is validated is rounded to it.
        products: float32, or what else products run in, which is bfloat16 as in all training.

    Raises:
        FreelunchError: a loss is NaN or infinite (names the step).
    """
    # tied weights are named once
    names = {name for name, _ in model.named_parameters()}
    parts = [
        (part, module, {name for name, _ in module.named_parameters() if f"{part}.{name}" in names})
        for part, module in model.named_children()
    ]
    trainable = Trainable(parts, lambda name: None, training, dtype)
    objective = _NextToken(model, tokens, products)
    return Trainer(trainable, objective, training, where, 0, keeper, weight_decay).train()


class _NextToken(Objective):
    """How badly a model predicts the next token."""

    def __init__(self, model: Any, tokens: Mapping[str, Tensor], products: torch.dtype) -> None:
        super().__init__(tokens, VALIDATION_TOKENS["pretrain"])
        self._model, self._tokens, self._products = model, tokens, products

    def load(self, split: str, rows: Tensor) -> Tensor:
        return self._tokens[split][rows].to(self._model.device).long()

    def loss(self, batch: Tensor) -> Tensor:
        rounded = self._products != torch.float32
        with torch.autocast(self._model.device.type, torch.bfloat16, enabled=rounded):
            logits = self._model(input_ids=batch, use_cache=False).logits
        return losses.cross_entropy(logits.float(), batch)
