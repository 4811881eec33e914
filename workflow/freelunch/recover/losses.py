"""What an output is compared with its target by; each gives the mean over all tokens it is handed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


def mse(output: Tensor, target: Tensor) -> Tensor:
    """``1/(T d) sum_t ||y_t - t_t||^2`` of states ``[..., d]`` (paper, local reconstruction)."""
    return nn.functional.mse_loss(output, target)


def normalized_mse(output: Tensor, target: Tensor) -> Tensor:
    """``1/T sum_t ||y_t - t_t||^2 / ||t_t||^2``: every token counts alike, however large its state is.

    The official code divides by the norm of the *output*, not squared, which rewards outputs that are too large.
    """
    error = (output - target).square().sum(-1)
    return (error / target.square().sum(-1).clamp(min=torch.finfo(target.dtype).tiny)).mean()


def cosine(output: Tensor, target: Tensor) -> Tensor:
    """``1 - cos(y_t, t_t)``, the mean over tokens: blind to the length of a state."""
    return 1 - nn.functional.cosine_similarity(output, target, dim=-1).mean()


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """Negative log-likelihood of each next token: ``logits`` ``[batch, length, vocabulary]``, ``tokens``
    ``[batch, length]``.
    """
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def kl(logits: Tensor, dense: Tensor) -> Tensor:
    """``KL(dense || trained)`` of the next-token distributions, the mean over the positions that predict a token."""
    target = nn.functional.log_softmax(dense[:, :-1].flatten(0, 1), dim=-1)
    found = nn.functional.log_softmax(logits[:, :-1].flatten(0, 1), dim=-1)
    return nn.functional.kl_div(found, target, reduction="batchmean", log_target=True)


LOSSES: dict[str, Loss] = {"mse": mse, "normalized_mse": normalized_mse, "cosine": cosine}
"""Of states."""
