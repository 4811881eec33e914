"""A second device for tests, on a machine without a GPU: it computes on the CPU, and is as strict as CUDA.

Its tensors (:class:`GpuTensor`) say that they lie on ``torch.device("gpu")``, and hold a CPU tensor that operations
compute with, so that numbers can be compared, gradients and optimisers included. As on CUDA, an operation that mixes
them with tensors of another device fails, but for numbers (0-dimensional CPU tensors), indices and copies; so does a
CPU generator. :func:`watched` counts what cannot be seen on a CPU:

* waits, every operation that on CUDA makes the host wait for all that was asked for before (those that
  ``torch.cuda.set_sync_debug_mode`` reports), with the lines of the package that asked for it;
* the bytes of live storages and their peak, in the units in which CUDA's allocator hands them out;
* a capacity, above which an allocation raises ``torch.OutOfMemoryError``.

Bytes that a kernel takes and gives back meanwhile are not counted, nor those that torch's cache keeps.

The device is torch's PrivateUse1 backend for Python. It has to be set up before the first backward pass of a process,
which starts a thread for every device; :mod:`conftest` does that.
"""

from __future__ import annotations

import sys
import threading
import traceback
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "gpu"
GRANULE = 512
"""Bytes of which CUDA's allocator gives multiples."""
PACKAGE = Path(__file__).parents[1] / "workflow" / "freelunch"

_aten = torch.ops.aten
_WAITING = {
    _aten._local_scalar_dense, _aten.is_nonzero, _aten.equal, _aten.nonzero, _aten.masked_select, _aten._unique2,
    _aten.unique_dim, _aten.unique_consecutive, _aten.bincount, _aten.repeat_interleave, _aten._linalg_check_errors,
    _aten._linalg_eigh, _aten._linalg_svd,
}  # fmt: skip
_INDEXING = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}
_COPYING = {_aten.copy_, _aten._to_copy, _aten._copy_from}
_TOGETHER = {_aten.cat, _aten.stack}
"""Operations that take no number of the CPU for a tensor."""


@dataclass
class Memory:
    """Live storages of the device, by address: their bytes, and how many tensors look at each."""

    storages: dict[int, list[int]] = field(default_factory=dict)
    live: int = 0
    peak: int = 0
    capacity: int | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)

    def take(self, inner: Tensor) -> int:
        """Count a tensor. The key of its storage."""
        storage = inner.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // GRANULE) * GRANULE
        with self.lock:
            if key not in self.storages:
                if self.capacity is not None and self.live + size > self.capacity:
                    raise torch.OutOfMemoryError(
                        f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB. GPU 0 has a total capacity of "
                        f"{self.capacity / 2**20:.2f} MiB"
                    )
                self.storages[key] = [size, 0]
                self.live += size
                self.peak = max(self.peak, self.live)
            self.storages[key][1] += 1
        return key

    def give(self, key: int) -> None:
        """A tensor is gone."""
        with self.lock:
            entry = self.storages[key]
            entry[1] -= 1
            if not entry[1]:
                self.live -= entry[0]
                del self.storages[key]


@dataclass
class Watch:
    """What was counted: waits by operation and place, and the most bytes at once beyond those there were before."""

    waits: Counter[str] = field(default_factory=Counter)
    peak: int = 0

    @property
    def count(self) -> int:
        """How often the host waited."""
        return self.waits.total()


MEMORY = Memory()
_watches: list[Watch] = []


@contextmanager
def watched(capacity: int | None = None) -> Iterator[Watch]:
    """Count waits and bytes while the context is open; ``capacity`` is in bytes, besides what lives already."""
    watch, before = Watch(), MEMORY.live
    MEMORY.peak, MEMORY.capacity = before, None if capacity is None else before + capacity
    _watches.append(watch)
    try:
        yield watch
    finally:
        _watches.remove(watch)
        watch.peak, MEMORY.capacity = MEMORY.peak - before, None


def _wait(operation: str) -> None:
    if not _watches:
        return
    lines = [
        f"{frame.filename.removeprefix(str(PACKAGE)).lstrip('/')}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_stack()
        if frame.filename.startswith(str(PACKAGE))
    ]
    for watch in _watches:
        watch.waits[f"{operation} at {' < '.join(reversed(lines[-2:])) or 'no line of the package'}"] += 1


class GpuTensor(Tensor):
    """A tensor of the device.

    Attributes:
        inner: the same on the CPU.
    """

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> GpuTensor:
        key = MEMORY.take(inner)
        found: GpuTensor = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=f"{NAME}:0",
        )  # fmt: skip
        found.inner = inner
        found._storage_count = weakref.finalize(found, MEMORY.give, key)
        found._storage_count.atexit = False
        return found

    @property
    def data(self) -> Tensor:
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, GpuTensor):
            raise RuntimeError(f"a tensor of {self.device} cannot be given the data of one of {value.device}")
        torch.Tensor.data.__set__(self, value)
        key = MEMORY.take(value.inner)
        self._storage_count()
        self.inner, self._storage_count = value.inner, weakref.finalize(self, MEMORY.give, key)
        self._storage_count.atexit = False

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, **_options: Any) -> str:
        return f"gpu:{self.inner!r}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operation gives, computed on the CPU, after what CUDA would refuse is refused and a wait is counted."""
    packet, leaves = func.overloadpacket, tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if packet is _aten.record_stream:
        return None
    _refuse_mixed(func, args, tensors, leaves)
    if _waits(packet, args, kwargs, tensors):
        _wait(str(func))
    to = kwargs.get("device")
    out_of = to is not None and torch.device(to).type != NAME
    inner_kwargs = {**kwargs, "device": "cpu"} if to is not None and not out_of else kwargs
    inner_args, inner_kwargs = tree_map_only(GpuTensor, lambda tensor: tensor.inner, (args, inner_kwargs))
    result = func(*inner_args, **inner_kwargs)
    written = _written(func)
    if written:
        given = [args[at] if at < len(args) else kwargs.get(name) for at, name in written]
        for tensor in tree_leaves(given):
            if isinstance(tensor, GpuTensor) and tensor.shape != tensor.inner.shape:
                tensor.data = GpuTensor(tensor.inner)
        returns = [value for value in func._schema.returns if value.alias_info is not None]
        if len(returns) == len(func._schema.returns) > 0:
            return given[0] if len(returns) == 1 else tuple(given)
    if out_of or (packet in _COPYING and not any(isinstance(tensor, GpuTensor) for tensor in tensors)):
        return result
    return tree_map_only(Tensor, GpuTensor, result)


@cache
def _written(func: Any) -> tuple[tuple[int, str], ...]:
    """Place and name of the arguments that an operation writes to."""
    found = [(i, each) for i, each in enumerate(func._schema.arguments) if each.alias_info and each.alias_info.is_write]
    return tuple((i, each.name) for i, each in found)


def _refuse_mixed(func: Any, args: Any, tensors: list[Tensor], leaves: list[Any]) -> None:
    """Raise as CUDA does where tensors of several devices meet, or random numbers would be those of the CPU."""
    packet = func.overloadpacket
    if any(isinstance(leaf, torch.Generator) and leaf.device.type != NAME for leaf in leaves):
        raise RuntimeError(f"{func}: expected a '{NAME}' device type for generator but found 'cpu'")
    if packet in _COPYING:
        return
    written = tree_leaves([args[at] for at, _ in _written(func) if at < len(args)])
    indices = args[1] if packet in _INDEXING else []
    for tensor in tensors:
        number = tensor.dim() == 0 and packet not in _TOGETHER and not any(tensor is each for each in written)
        allowed = tensor.device.type == "cpu" and (number or any(tensor is index for index in indices))
        if not isinstance(tensor, GpuTensor) and not allowed:
            shapes = [(str(each.device), list(each.shape)) for each in tensors]
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found {shapes}")


def _waits(packet: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> bool:
    """Whether CUDA would have the host wait."""
    if packet in _COPYING:
        to = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        source = args[1] if packet is _aten.copy_ else args[0]
        target = args[0].device if packet is _aten.copy_ else to or source.device
        if {source.device.type, target.type} != {NAME, "cpu"}:
            return False
        asynchronous = kwargs.get("non_blocking", args[2] if packet is _aten.copy_ and len(args) > 2 else False)
        host = source if target.type == NAME else args[0]
        return not (asynchronous and isinstance(host, Tensor) and is_pinned(host))
    if packet in _INDEXING:
        indices = [each for each in args[1] if each is not None]
        # of a mask the places are looked for; but to write one number, it is filled
        masks = [each for each in indices if each.dtype in (torch.bool, torch.uint8)]
        filled = packet is not _aten.index and len(indices) == len(masks) == 1 and args[2].numel() == 1
        return (bool(masks) and not filled) or any(not isinstance(each, GpuTensor) for each in indices)
    if packet is _aten.repeat_interleave:
        return kwargs.get("output_size") is None
    return packet in _WAITING


# --- the backend -----------------------------------------------------------------------------------------------------


_FACTORIES = """empty.memory_format empty_strided arange arange.start arange.start_step eye eye.m randperm
randperm.generator tril_indices triu_indices"""
"""Operations without a tensor among their arguments that torch does not write in terms of the others."""


def _made(func: Any) -> Any:
    def make(*args: Any, **kwargs: Any) -> GpuTensor:
        return GpuTensor(func(*args, **{**kwargs, "device": "cpu", "pin_memory": None}))

    return make


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """``torch.tensor`` copies without asking the class of a tensor."""
    copied: Tensor = _computed(_aten.copy_.default, (target, source, non_blocking), {})
    return copied


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0, causal: bool = False,
    *, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """By a fused kernel, as on CUDA (that of the CPU, with its bits), which keeps no scores of pairs of tokens."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (each.repeat_interleave(groups, -3, output_size=query.shape[-3]) for each in (key, value))
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
    fused = _aten._scaled_dot_product_flash_attention_for_cpu
    output: Tensor = fused(query, key, value, dropout, causal, attn_mask=mask, scale=scale)[0]
    return output


_ROUNDED = """linear matmul mm mv addmm addmv bmm baddbmm addbmm conv1d conv2d conv3d einsum
scaled_dot_product_attention"""
"""What autocast computes in the lower precision on CUDA, of what is used here."""
_EXACT = """exp log log2 log10 log1p expm1 pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar rsqrt reciprocal softmax.int
log_softmax.int layer_norm native_layer_norm group_norm rms_norm norm.Scalar cosine_similarity cross_entropy_loss
nll_loss mse_loss kl_div smooth_l1_loss l1_loss cumsum cumprod prod sum sum.dim_IntList"""
"""What it computes in float32."""


def _cast(func: Any, dtype: torch.dtype | None) -> Any:
    """An operation under autocast: its tensors are rounded to a dtype, that of autocast if None, and then it runs."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(*args: Any, **kwargs: Any) -> Any:
        wanted = dtype or torch.get_autocast_dtype(NAME)
        with torch._C._ExcludeDispatchKeyGuard(keys):

            def rounded(tensor: Tensor) -> Tensor:
                lies_here = tensor.device.type == NAME and tensor.is_floating_point() and tensor.dtype != torch.float64
                return tensor.to(wanted) if lies_here else tensor

            args, kwargs = tree_map_only(Tensor, rounded, (args, kwargs))
            return func(*args, **kwargs)

    return cast


class _Module:
    """What torch asks a device for under ``torch.gpu``, and the package where it asks CUDA."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def device(self, index: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def manual_seed_all(self, seed: int) -> None:
        """Random numbers are those of the CPU."""

    def get_rng_state(self, device: Any = 0) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = 0) -> None:
        torch.set_rng_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_libraries: list[torch.library.Library] = []


def register() -> None:
    """Set the device up, once in a process."""
    if _libraries:
        return
    _setup_privateuseone_for_python_backend(NAME, _Module())
    kernels = torch.library.Library("aten", "IMPL")
    fallbacks = torch.library.Library("_", "IMPL")
    fallbacks.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    _libraries.extend([kernels, fallbacks])
    kernels.impl("_copy_from", _copy_from, "PrivateUse1")
    for key in ("PrivateUse1", "AutogradPrivateUse1"):
        kernels.impl("scaled_dot_product_attention", _attention, key)
    for name in _FACTORIES.split():
        kernels.impl(name, _made(_overload(name)), "PrivateUse1")
    for names, dtype in ((_ROUNDED, None), (_EXACT, torch.float32)):
        for name in names.split():
            kernels.impl(name, _cast(_overload(name), dtype), "AutocastPrivateUse1")


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(_aten, packet), overload or "default")


# --- the package on it -----------------------------------------------------------------------------------------------

_pinned: weakref.WeakValueDictionary[int, torch.UntypedStorage] = weakref.WeakValueDictionary()


def is_pinned(host: Tensor) -> bool:
    """Whether a CPU tensor lies in memory of :meth:`Copies.pinned`."""
    return host.untyped_storage()._cdata in _pinned


class _Event:
    def synchronize(self) -> None:
        """Copies are done when they are asked for."""


class Copies:
    """Copies between pinned memory and the device (:class:`freelunch.engine.transfers.Copies`)."""

    def pinned(self, size: int) -> Tensor:
        buffer = torch.empty(size, dtype=torch.uint8)
        _pinned[buffer.untyped_storage()._cdata] = buffer.untyped_storage()
        return buffer

    def up(self, host: Tensor, dtype: torch.dtype) -> tuple[Tensor, _Event]:
        return host.to(NAME, non_blocking=True).to(dtype), _Event()

    def arrived(self, tensor: Tensor, event: _Event) -> Tensor:
        return tensor

    def down(self, tensor: Tensor, host: Tensor) -> _Event:
        host.copy_(tensor, non_blocking=True)
        return _Event()

    def computed(self) -> _Event:
        return _Event()


def use(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Have all of the package compute on the device, whatever ``execution.device`` says."""
    from freelunch.engine import device, transfers

    def choose(name: str) -> torch.device:
        return torch.device(NAME)

    real, copies = device.choose, transfers.copies_for
    for name, module in list(sys.modules.items()):
        if name.startswith("freelunch"):
            if getattr(module, "choose", None) is real:
                monkeypatch.setattr(module, "choose", choose)
            if getattr(module, "copies_for", None) is copies:
                monkeypatch.setattr(module, "copies_for", lambda device: Copies() if device.type == NAME else None)
    return torch.device(NAME)


register()
