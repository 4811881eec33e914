"""Training of a model from random weights: all parameters, on the next token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from freelunch.plan.config import Train
from freelunch.plan.specs import training_of
from freelunch.recover import losses
from freelunch.recover.fit import Keeper, Trained
from freelunch.recover.schedule import VALIDATION_TOKENS
from freelunch.recover.trainable import Trainable
from freelunch.recover.training import Trainer


def pretrain(
    model: Any, tokens: Mapping[str, Tensor], train: Train, dtype: torch.dtype, products: torch.dtype, where: str,
    keeper: Keeper | None = None,
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
    training = training_of(train)
    trainable = Trainable(parts, lambda name: None, training, dtype)
    fit = Trainer(trainable, _NextToken(model, tokens, products), training, where, 0, keeper, train.weight_decay).fit()
    return Trained({name: tensor.cpu() for name, tensor in fit.best.items()}, fit, trainable.count)


class _NextToken:
    """How badly a model predicts the next token."""

    def __init__(self, model: Any, tokens: Mapping[str, Tensor], products: torch.dtype) -> None:
        self._model, self._tokens, self._products = model, tokens, products

    def count(self, split: str) -> int:
        return len(self._tokens[split])

    def validation_batch(self) -> int:
        return max(1, VALIDATION_TOKENS["pretrain"] // self._tokens["validation"].shape[1])

    def load(self, split: str, rows: Tensor) -> Tensor:
        return self._tokens[split][rows].to(self._model.device).long()

    def loss(self, batch: Tensor) -> Tensor:
        rounded = self._products != torch.float32
        with torch.autocast(self._model.device.type, torch.bfloat16, enabled=rounded):
            logits = self._model(input_ids=batch, use_cache=False).logits
        return losses.cross_entropy(logits.float(), batch)
