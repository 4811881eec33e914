"""Networks as models of lm-eval: streamed, for those that do not fit into the device's memory, or held as a whole.

Streamed, requests are sorted by length and cut into waves, whose hidden states lie in the host's memory. For every wave
each block is read once, and run on batches of the wave. Sequences are padded on the right, which a causal model cannot
see.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from freelunch.engine.states import advance
from freelunch.engine.streaming import Network
from freelunch.errors import FreelunchError
from freelunch.evaluate.sizes import LOGITS, STATES

MULTIPLE = 8
"""Lengths are padded to a multiple of this: the call arguments of blocks are kept for every shape of a batch."""
NEW_TOKENS = 256
"""Most tokens of an answer, where the task does not say, as in lm-eval's own model; room for one in whole batches."""


class StreamingLM(TemplateLM):  # type: ignore[misc]
    """lm-eval's requests on a streamed network, with the tokens that its own model class ``HFLM`` would use.

    Args:
        network: the model.
        tokenizer: of the model.
        stream_tokens: tokens per forward batch.
        state_bytes: host memory for the hidden states of a wave, at most (one batch in any case).
    """

    def __init__(self, network: Network, tokenizer: Any, stream_tokens: int, state_bytes: int = STATES) -> None:
        super().__init__()
        self.network, self.tokenizer, self.stream_tokens = network, tokenizer, stream_tokens
        self._device = network.device
        self.max_length: int = resolve_max_length(network.config, tokenizer)
        text = network.config.get_text_config()
        self._wave_tokens = state_bytes // (text.hidden_size * network.products.itemsize)
        self._vocabulary: int = text.vocab_size
        ends = text.eos_token_id
        self._ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        end: int = self.tokenizer.eos_token_id
        return end

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no context."""
        begin: int | None = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else begin

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens of a text; special ones are added as the tokenizer does it, unless the text begins with them."""
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        tokens: list[int] = self.tokenizer.encode(string, **options)
        return tokens

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, in windows of the model's context."""
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for pair in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1):
                windows.append((None, *make_disjoint_window(pair)))
                owners.append(index)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[owner] += value
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """For each (request, context, continuation): log-likelihood of the continuation; whether it is the likeliest.

        Raises:
            FreelunchError: a log-likelihood is not finite, or a continuation is longer than the model's context.
        """
        same: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            if len(continuation) > self.max_length:
                raise FreelunchError(f"an answer of {len(continuation)} tokens exceeds the context, {self.max_length}")
            # the last token is not read, only predicted
            same.setdefault(tuple((context + continuation)[-(self.max_length + 1) :][:-1]), []).append(index)
        inputs = list(same)
        counts = [max(len(requests[index][2]) for index in same[tokens]) for tokens in inputs]
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for number, logits in self._last_logits(inputs, counts, disable_tqdm):
            predicted, greedy = logits.float().log_softmax(-1), logits.argmax(-1)
            for index in same[inputs[number]]:
                answer = torch.tensor(requests[index][2], device=logits.device)
                value = predicted[-len(answer) :].gather(1, answer[:, None]).sum().item()
                if not abs(value) < float("inf"):
                    raise FreelunchError("the log-likelihood of an answer is NaN or infinite; try dtype: float32")
                results[index] = (value, bool((greedy[-len(answer) :] == answer).all()))
        return results

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations. Every token takes a pass through the whole network: right, and slow.

        Raises:
            FreelunchError: a task asks for samples, or for more tokens than the context has.
        """
        stops: list[list[str]] = []
        rooms: list[int] = []
        prompts: list[list[int]] = []
        end = self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
        for request in requests:
            context, options = request.args[0], normalize_gen_kwargs(request.args[1], NEW_TOKENS)
            room = options["max_gen_toks"]
            if options["do_sample"]:
                raise FreelunchError("a task asks for sampled answers, and streamed ones are greedy; "
                                     "use execution.zero_shot: whole")  # fmt: skip
            if room >= self.max_length:
                raise FreelunchError(f"a task asks for answers of {room} tokens, and the context of the model is "
                                     f"{self.max_length}")  # fmt: skip
            stops.append(handle_stop_sequences(options["until"], eos=end))
            rooms.append(room)
            special = {"add_special_tokens": False} if has_bos_prefix(context, self.tokenizer.bos_token) else {}
            prompts.append(self.tokenizer.encode(context, **special)[-(self.max_length - room) :])
        answers: list[list[int]] = [[] for _ in requests]
        unfinished = list(range(len(requests)))
        with tqdm(total=max(rooms, default=0), desc="answers", unit="token", disable=disable_tqdm) as progress:
            while unfinished:
                inputs = [tuple(prompts[index] + answers[index]) for index in unfinished]
                going = []
                for number, logits in self._last_logits(inputs, [1] * len(inputs), disable_tqdm=True):
                    index, token = unfinished[number], int(logits[-1].float().argmax())
                    answers[index].append(token)
                    text = self.tokenizer.decode(answers[index], skip_special_tokens=False)
                    stopped = token in self._ends or any(stop in text for stop in stops[index] if stop)
                    if not stopped and len(answers[index]) < rooms[index]:
                        going.append(index)
                unfinished = sorted(going)
                progress.update()
        texts = [self.tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
        return [postprocess_generated_text(text, stop, None) for text, stop in zip(texts, stops, strict=True)]

    # --- the passes --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _last_logits(
        self, inputs: Sequence[tuple[int, ...]], counts: Sequence[int], disable_tqdm: bool
    ) -> Iterator[tuple[int, Tensor]]:
        """Logits ``[count, vocabulary]`` behind the last ``count`` tokens of each sequence; not in their order."""
        waves, blocks = list(self._waves(inputs)), len(self.network.blocks)
        with tqdm(total=blocks * len(waves), desc="zero-shot", unit="block", disable=disable_tqdm) as progress:
            for wave in waves:
                with self.network.embedding() as embed:
                    states = [embed(self._padded([inputs[i] for i in batch])).cpu() for batch in wave]
                for index in range(blocks):
                    with self.network.block(index) as block:
                        advance(self.network, index, block, states)
                    progress.update()
                with self.network.head() as head:
                    for batch, state in zip(wave, states, strict=True):
                        rows = [state[row, len(inputs[i]) - counts[i] : len(inputs[i])] for row, i in enumerate(batch)]
                        for members in _within([counts[i] for i in batch], LOGITS // self._vocabulary):
                            # every position as a sequence of its own: what is behind the blocks looks at each alone
                            logits = head(torch.cat([rows[row] for row in members])[:, None])[:, 0]
                            parts = logits.split([counts[batch[row]] for row in members])
                            yield from ((batch[row], part) for row, part in zip(members, parts, strict=True))

    def _waves(self, inputs: Sequence[tuple[int, ...]]) -> Iterator[list[list[int]]]:
        """Batches of sequences, the longest first, in waves whose states fit into memory."""
        order = sorted(range(len(inputs)), key=lambda index: (-len(inputs[index]), inputs[index]))
        batches, sizes = [], []
        while order:
            length = self._padded_length(len(inputs[order[0]]))
            rows = max(1, self.stream_tokens // length)
            batches.append(order[:rows])
            sizes.append(length * len(batches[-1]))
            order = order[rows:]
        for members in _within(sizes, self._wave_tokens):
            yield [batches[at] for at in members]

    def _padded_length(self, length: int) -> int:
        return min(-(-length // MULTIPLE) * MULTIPLE, self.max_length)

    def _padded(self, sequences: list[tuple[int, ...]]) -> Tensor:
        tokens = torch.zeros(len(sequences), self._padded_length(max(map(len, sequences))), dtype=torch.long)
        for row, sequence in zip(tokens, sequences, strict=True):
            row[: len(sequence)] = torch.tensor(sequence)
        return tokens


def _within(sizes: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Indices of consecutive sizes that add up to at most ``limit``, one at least."""
    members: list[int] = []
    total = 0
    for at, size in enumerate(sizes):
        if members and total + size > limit:
            yield members
            members, total = [], 0
        members.append(at)
        total += size
    if members:
        yield members


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
