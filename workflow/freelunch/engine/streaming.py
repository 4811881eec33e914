"""The streaming engine: hidden states go through a decoder with one block's weights in memory at a time.

The model is built without weights. Its blocks are taken out and replaced by taps that record how they are called and
pass the hidden state on, so one forward pass of what is left gives the embedding, every block's own call arguments
(layers with sliding and with full attention differ) and, with a state injected at the last tap, the logits. Weights
are read block by block from a ``TensorSource``, so an overlay streams like a dense model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PretrainedConfig, PreTrainedModel

from freelunch.engine.blocks import Call, StopForward, call_block, find_blocks
from freelunch.engine.device import release_memory
from freelunch.engine.overlays import TensorSource
from freelunch.engine.transfers import copies_for
from freelunch.errors import FreelunchError


class _Tap(nn.Module):
    """Stands where a block was: records the call, and passes the hidden state (or an injected one) on."""

    call: Call | None = None
    hidden: Tensor | None = None
    inject: Tensor | None = None

    def __init__(self, block: nn.Module, last: bool) -> None:
        super().__init__()
        # in a tuple, so that the block's weights do not become parameters of the skeleton
        self._block, self._last = (block,), last

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._block[0], name)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.inject is not None:
            return self.inject
        self.call, self.hidden = Call(args, kwargs), hidden
        if self._last:
            raise StopForward(hidden)
        return hidden


class Network:
    """A causal language model whose weights are read when needed.

    Args:
        config: its Hugging Face config.
        source: its tensors, by the names that transformers gives them.
        dtype: what weights are rounded to, and what is saved of them and of hidden states.
        device: where blocks are run.
        products: what weights and hidden states are computed in; ``dtype`` if None.
    """

    def __init__(
        self, config: PretrainedConfig, source: TensorSource, dtype: torch.dtype, device: torch.device | str = "cpu",
        products: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        self.source, self.dtype, self.device = source, dtype, torch.device(device)
        self.products = dtype if products is None else products
        with torch.device("meta"):
            self._model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
        # written down now: whoever holds a loaded block may change the dtype of its parameters
        self._dtypes = {name: tensor.dtype for name, tensor in self._model.state_dict().items()}
        self.prefix, blocks = find_blocks(self._model, config.get_text_config().num_hidden_layers)
        self.blocks = list(blocks)
        self._taps = [_Tap(block, block is self.blocks[-1]) for block in self.blocks]
        for index, tap in enumerate(self._taps):
            blocks[index] = tap
        self.config: PretrainedConfig = self._model.config
        self.copies = copies_for(self.device)
        """How batches get to the device and back beside its computations."""
        self._embedding = self._model.get_input_embeddings()
        self._head = self._model.get_output_embeddings()
        self._names = {id(module): name for name, module in self._model.named_modules()}
        self._calls: dict[tuple[int, int], list[Call]] = {}
        for module in self._model.modules():
            if module not in (self._embedding, self._head):
                self._fill(module, self._names[id(module)])

    # --- the parts around the blocks ---------------------------------------------------------------------------------

    @torch.no_grad()
    def embed(self, tokens: Tensor, checked: bool = True) -> Tensor:
        """Hidden states ``[batch, length, width]`` at the first block's input, of ``tokens`` ``[batch, length]``.

        Args:
            checked: whether blocks are looked at being called with :meth:`calls`, for which the device is waited for;
                once is enough for the same tokens.
        """
        with self._loaded(self._embedding):
            self._forward(input_ids=tokens.to(self.device).long(), **({} if checked else _unpacked()))
        hidden, calls = self._taps[0].hidden, [tap.call for tap in self._taps]
        assert hidden is not None
        if checked:
            self._check_calls(calls, self.calls(*tokens.shape))
        return hidden

    @contextmanager
    def embedding(self, checked: bool = True) -> Iterator[Callable[[Tensor], Tensor]]:
        """:meth:`embed` for many batches: the embedding is read once."""
        with self._loaded(self._embedding):
            yield partial(self.embed, checked=checked)

    def calls(self, batch: int, length: int) -> list[Call]:
        """The call arguments of every block for a batch of unpadded sequences."""
        if (batch, length) not in self._calls:
            with torch.no_grad():
                self._forward(inputs_embeds=self._zeros(batch, length))
            self._calls[batch, length] = [tap.call for tap in self._taps if tap.call is not None]
        return self._calls[batch, length]

    @contextmanager
    def head(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """A function from hidden states behind the last block to logits, valid while the context is open.

        Gradients flow through it, unless the caller says otherwise.
        """
        last = self._taps[-1]

        def logits(hidden: Tensor) -> Tensor:
            last.inject = self.taken(hidden)
            zeros = self._zeros(*hidden.shape[:2])
            try:
                result: Tensor = self._model(inputs_embeds=zeros, use_cache=False, **_unpacked()).logits
            finally:
                last.inject = None
            return result

        with self._loaded(self._head):
            yield logits

    # --- the blocks --------------------------------------------------------------------------------------------------

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """A block with its weights on the device, given back when the context closes."""
        block = self.blocks[index]
        self._add_biases(block, self.block_name(index))
        self._fill(block, self.block_name(index), recurse=True)
        try:
            yield block
        finally:
            block.to("meta")
            release_memory()

    def block_name(self, index: int) -> str:
        """Full name of a block: the prefix of its tensors' names."""
        return f"{self.prefix}.{index}"

    @contextmanager
    def whole(self) -> Iterator[PreTrainedModel]:
        """The model with all of its weights on the device, as transformers runs it; not to be streamed meanwhile."""
        blocks = self._model.get_submodule(self.prefix)
        assert isinstance(blocks, nn.ModuleList)
        with ExitStack() as loaded:
            for module in (self._embedding, self._head):
                loaded.enter_context(self._loaded(module))
            try:
                for index in range(len(self.blocks)):
                    blocks[index] = loaded.enter_context(self.block(index))
                yield self._model
            finally:
                for index, tap in enumerate(self._taps):
                    blocks[index] = tap

    @torch.no_grad()
    def run_block(self, index: int, block: nn.Module, hidden: Tensor) -> Tensor:
        """Output of a loaded block on one batch of hidden states ``[batch, length, width]``."""
        return call_block(block, self.taken(hidden), self.calls(*hidden.shape[:2])[index])

    def taken(self, hidden: Tensor) -> Tensor:
        """Hidden states on the device, in the dtype of the products."""
        return hidden.to(self.device, self.products)

    def autocast(self) -> AbstractContextManager[Any]:
        """Products in bfloat16 while it is trained, unless they are those of float32."""
        exact = self.products == torch.float32
        return nullcontext() if exact else torch.autocast(self.device.type, torch.bfloat16)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _forward(self, **inputs: Any) -> None:
        try:
            self._model(use_cache=False, **inputs)
        except StopForward:
            return
        raise AssertionError("a forward pass must end at the last tap")

    def _zeros(self, batch: int, length: int) -> Tensor:
        width = self._embedding.weight.shape[1]
        return torch.zeros(batch, length, width, dtype=self.products, device=self.device)

    @contextmanager
    def _loaded(self, module: nn.Module) -> Iterator[None]:
        if not next(module.parameters()).is_meta:
            yield
            return
        self._fill(module, self._names[id(module)])
        try:
            yield
        finally:
            module.to("meta")

    def _add_biases(self, block: nn.Module, name: str) -> None:
        """Give a linear layer the bias that an overlay has for it and its config has not."""
        for child, linear in block.named_modules():
            full = f"{name}.{child}.bias"
            if isinstance(linear, nn.Linear) and linear._parameters["bias"] is None and full in self.source:
                bias = torch.empty(linear.out_features, device="meta", dtype=self._dtypes[f"{name}.{child}.weight"])
                linear.bias = nn.Parameter(bias, requires_grad=False)
                self._dtypes[full] = bias.dtype

    def _fill(self, module: nn.Module, name: str, recurse: bool = False) -> None:
        """Read a module's own tensors (with ``recurse`` those of its children too) and rebuild its buffers."""
        for child in module.modules() if recurse else [module]:
            self._rebuild_buffers(child)  # first: transformers' initialisation must find no weights to overwrite
        state = {}
        for key, tensor in module.state_dict(keep_vars=True).items():
            if "." in key and not recurse:
                continue
            full = f"{name}.{key}" if name else key
            value = self._read(full)
            if value.shape != tensor.shape:
                raise FreelunchError(f"tensor {full} is {list(value.shape)}, its config says {list(tensor.shape)}")
            dtype = self._dtypes[full]
            # rounded to the model's dtype also where more digits could be computed with
            state[key] = value.to(self.device, dtype).to(self.products if dtype == self.dtype else dtype)
        if state:
            module.load_state_dict(state, strict=False, assign=True)
        module.requires_grad_(False)

    def _read(self, name: str) -> Tensor:
        if name not in self.source:
            tied = self._model.config.get_text_config().tie_word_embeddings
            if tied and name == f"{self._names[id(self._head)]}.weight":
                name = f"{self._names[id(self._embedding)]}.weight"
        return self.source.load(name)

    def _rebuild_buffers(self, module: nn.Module) -> None:
        """Recompute what no file holds (rotary tables, an embedding's scale), as transformers does when it loads."""
        lost = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        if not lost:
            return
        rebuilt: list[list[Tensor]] = []
        for fill in (0, 1):
            for name in lost:
                buffer = torch.full_like(module.get_buffer(name), fill, device=self.device)
                module.register_buffer(name, buffer, persistent=name not in module._non_persistent_buffers_set)
            self._model._init_weights(module)
            rebuilt.append([module.get_buffer(name) for name in lost])
        for name, zeros, ones in zip(lost, *rebuilt, strict=True):
            # what was in it before shows: nothing was written to it
            if name in module._non_persistent_buffers_set and not torch.equal(zeros, ones):
                raise FreelunchError(f"{type(module).__name__}: its buffer {name} is in no file and cannot be rebuilt")

    def _check_calls(self, calls: list[Call | None], expected: list[Call]) -> None:
        compared: dict[tuple[int, int], bool] = {}
        for index, (call, other) in enumerate(zip(calls, expected, strict=True)):
            if call is None or not _same((call.args, call.kwargs), (other.args, other.kwargs), compared):
                raise FreelunchError(
                    f"{type(self._model).__name__}: the arguments of block {index} depend on the tokens, not only on "
                    "their shape; such models cannot be streamed"
                )


def _unpacked() -> dict[str, Any]:
    """Keeps transformers from looking, on the device, whether several texts share a sequence: a cache rules it out."""
    return {"past_key_values": DynamicCache()}


def _same(one: Any, other: Any, compared: dict[tuple[int, int], bool]) -> bool:
    """Whether arguments are equal; pairs of tensors are ``compared`` once, since blocks are called with the same."""
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        pair = id(one), id(other)
        if pair not in compared:
            compared[pair] = torch.equal(one, other)
        return compared[pair]
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(_same(a, b, compared) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key], compared) for key in one)
    return type(one) is type(other) and (not isinstance(one, bool | int | float | str) or one == other)
