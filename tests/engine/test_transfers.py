"""Batches that are copied beside the computation are those that a plain copy would have brought, however late it is."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from itertools import cycle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from freelunch.engine.blocks import matrices
from freelunch.engine.overlays import InMemory
from freelunch.engine.states import States, advance, batches, caught_states
from freelunch.engine.streaming import Network
from freelunch.engine.transfers import SLOTS, Downloads, Uploads, arriving
from freelunch.errors import FreelunchError
from freelunch.evaluate.perplexity import perplexities
from freelunch.plan.specs import Training
from freelunch.recover.flows import FLOWS
from freelunch.recover.reconstruct import reconstruct_window
from freelunch.recover.retrain import retrain
from freelunch.recover.windows import BlockMatrices, tile
from tiny import random_model, random_tokens

FAMILIES = ["llama", "opt"]


@dataclass
class Late:
    """Copies that an accelerator makes as late as it may: each when somebody waits for it, after those before it."""

    sizes: list[int] = field(default_factory=list)
    made: int = 0
    waited: list = field(default_factory=list)
    _waiting: dict[str, list] = field(default_factory=lambda: {"up": [], "down": []})
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def pinned(self, size):
        self.sizes.append(size)
        return torch.full((size,), 255, dtype=torch.uint8)

    def up(self, host, dtype):
        # what is in memory until the copy is made is never what is asked for
        tensor = torch.full(host.shape, -7, dtype=dtype)
        return tensor, self._asked("up", tensor, host)

    def arrived(self, tensor, event):
        event.synchronize()
        return tensor

    def down(self, tensor, host):
        return self._asked("down", host, tensor)

    def computed(self):
        self.waited.append(_Counted(self.waited))
        return self.waited[-1]

    def _asked(self, queue, target, source):
        def copy():
            target.copy_(source)
            self.made += 1

        event = _Event(self._lock, self._waiting[queue])
        with self._lock:
            self._waiting[queue].append((event, copy))
        return event


@dataclass(eq=False)
class _Event:
    lock: threading.RLock
    queue: list

    def synchronize(self):
        with self.lock:
            while any(event is self for event, _ in self.queue):
                self.queue.pop(0)[1]()


@dataclass(eq=False)
class _Counted:
    """Computations, and how many were asked for when somebody waited for these."""

    asked: list
    then: int | None = None

    def synchronize(self):
        self.then = len(self.asked)


@given(
    st.integers(1, 9), st.integers(1, 4), st.booleans(), st.sampled_from([torch.bfloat16, torch.int32]), st.integers(0)
)
def test_sent_batches_arrive_whole_and_in_order(count, size, shuffled, dtype, seed):
    states = torch.arange(count * 6).reshape(count, 2, 3).to(dtype)
    copies, order = Late(), torch.randperm(count, generator=torch.Generator().manual_seed(seed % 2**31))
    rows = list(order.split(size)) if shuffled else list(batches(count, size))
    found = list(arriving(copies, [(states, each) for each in rows], torch.float32))
    assert [part.tolist() for part in found] == [states[each].float().tolist() for each in rows]
    assert all(part.dtype == torch.float32 for part in found)
    # buffers are used again, also by batches that are smaller
    assert len(copies.sizes) <= SLOTS and copies.made == len(rows)
    plain = list(arriving(None, [(states, each) for each in rows], torch.float32))
    assert all(torch.equal(*pair) for pair in zip(found, plain, strict=True))


@given(st.integers(1, 9), st.integers(1, 4))
def test_what_was_written_is_there_when_the_context_closes(count, size):
    values, copies = torch.randn(count, 2, 3), Late()
    found, plain = torch.zeros(count, 2, 3, dtype=torch.bfloat16), torch.zeros(count, 2, 3, dtype=torch.bfloat16)
    threads = threading.active_count()
    for room, used in ((found, copies), (plain, None)):
        with Downloads(used) as results:
            for rows in batches(count, size):
                results.write(values[rows].clone(), room, rows)
    assert torch.equal(found, values.bfloat16()) and torch.equal(plain, found)
    assert len(copies.sizes) <= SLOTS and threading.active_count() == threads


def test_buffers_grow_with_batches_and_the_host_is_at_most_two_batches_ahead_of_the_computation():
    copies = Late()
    uploads = Uploads(copies)
    for size in (1, 2, 3, 4, 2, 1):
        states = torch.randn(size, 5)
        assert torch.equal(uploads.send(states, slice(None), torch.float32).received(), states)
    assert copies.sizes == [20, 40, 60, 80]
    assert len(list(arriving(copies, [(torch.randn(9, 5), rows) for rows in batches(9, 1)], torch.float32))) == 9
    assert [event.then for event in copies.waited] == [2, 3, 4, 5, 6, 7, 8, None, None]


def test_two_threads_may_send_at_once():
    copies, started, go = Late(), threading.Event(), threading.Event()
    uploads = Uploads(copies)

    class Slow(torch.Tensor):
        """States on a slow disk: when they are read, others have time to read too."""

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is torch.index_select:
                started.set()
                go.wait(0.5)
            return super().__torch_function__(func, types, args, kwargs or {})

    slow, quick = torch.ones(3, 4).as_subclass(Slow), torch.zeros(3, 4)
    rows, found = torch.arange(3), []
    thread = threading.Thread(target=lambda: found.append(uploads.send(slow, rows, torch.float32)))
    thread.start()
    started.wait()
    others = [uploads.send(quick, rows, torch.float32) for _ in range(SLOTS)]
    go.set()
    thread.join()
    assert bool((found[0].received() == 1).all())
    assert all(bool((each.received() == 0).all()) for each in others)


def test_a_failure_to_write_comes_through():
    with pytest.raises(RuntimeError, match=r"shape|expand"), Downloads(Late()) as results:
        results.write(torch.zeros(2, 3), torch.zeros(2, 4), slice(None))
    with pytest.raises(FreelunchError, match=r"^mine$"), Downloads(Late()) as results:
        results.write(torch.zeros(2, 3), torch.zeros(2, 4), slice(None))
        raise FreelunchError("mine")


# --- where they are used ---------------------------------------------------------------------------------------------


def network_of(family, copies=None):
    model = random_model(family, dtype=torch.bfloat16)
    network = Network(model.config, InMemory(dict(model.state_dict())), torch.bfloat16)
    assert network.copies is None  # the CPU copies nothing
    network.copies = copies
    return network


@pytest.mark.parametrize("family", FAMILIES)
def test_passes_give_the_same_bits(family, tmp_path):
    tokens = random_tokens(5, 12)
    found = []
    for copies in (None, Late()):
        network = network_of(family, copies)
        hidden = network.embed(tokens)
        states = States(network, {0: hidden}, 2, tmp_path)
        matrix = "self_attn.k_proj"
        batched = list(hidden.clone().split(2))
        with network.block(0) as block:
            advance(network, 0, block, batched)
        found.append([
            states.at(2), states.at(6), *caught_states(network, 1, "block", None, matrix, states.at(2), 2, tmp_path),
            *batched,
        ])  # fmt: skip
        values = perplexities(network, {"a": tokens, "b": random_tokens(3, 12, 1)}, 24)
        found[-1] += [torch.tensor([value.value, value.stderr]) for value in values.values()]
        assert copies is None or copies.made > 20
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize(("flow", "family"), list(zip(FLOWS, cycle(FAMILIES), strict=False)))
def test_trainings_give_the_same_bits(flow, family, tmp_path):
    kind = "matrix" if flow == "official_matrix" else "attention_mlp"
    training = Training(epochs=2, batch_size=2, learning_rate=1e-3, accumulation=2)
    found = []
    for copies in (None, Late()):
        network = network_of(family, copies)
        states = {"calibration": network.embed(random_tokens(5, 12)), "validation": network.embed(random_tokens(3, 12))}
        walks = {split: States(network, {0: hidden}, 2, tmp_path) for split, hidden in states.items()}
        inside = [BlockMatrices(tuple(matrices(network.blocks[0])))] * len(network.blocks)
        windows = tile(kind, len(network.blocks), inside)[: 7 if kind == "matrix" else 4]
        work = FLOWS[flow](walks, network, states, windows, 2, tmp_path)
        found.append([])
        for window in windows:
            result = reconstruct_window(work, window, lambda name: None, training)
            found[-1] += [*result.tensors.values(), torch.tensor(result.fit.losses)]
            work.leave(window)
        assert copies is None or copies.made > 20
    assert len(found[0]) > 3 and all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("loss", ["cross_entropy", "kl"])
def test_retraining_gives_the_same_bits(loss):
    training = Training(loss=loss, epochs=2, batch_size=2, learning_rate=1e-3)
    tokens = {"calibration": random_tokens(5, 12), "validation": random_tokens(3, 12, 1)}
    found = []
    for copies in (None, Late()):
        network = network_of("llama", copies)
        dense = {split: network.embed(each) for split, each in tokens.items()}
        result = retrain(network, tokens, dense, lambda name: None, training)
        found.append([*result.tensors.values(), torch.tensor(result.fit.losses)])
        assert copies is None or copies.made > 5
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
