"""lm-eval's own model class around a model that is in memory as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel

NEW_TOKENS = 256
"""Room for an answer when batches are sized."""


class WholeLM(HFLM):  # type: ignore[misc]
    """``HFLM`` with log-likelihoods in float32, and batches of so many sequences as ``stream_tokens`` has room for."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any, stream_tokens: int) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, softmax_dtype="float32", batch_size=1)
        self._stream_tokens = stream_tokens

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], *arguments: Any, **options: Any
    ) -> list[tuple[float, bool]]:
        self._fit(max((len(context) + len(answer) for _, context, answer in requests), default=1))
        results: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, *arguments, **options)
        return results

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy, or as the task says."""
        self._fit(max((len(self.tok_encode(request.args[0])) for request in requests), default=1) + NEW_TOKENS)
        answers: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm)
        return answers

    def _fit(self, longest: int) -> None:
        self.batch_size_per_gpu = max(1, self._stream_tokens // longest)
