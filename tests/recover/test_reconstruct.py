"""Reconstruction trains the weights of its window, no others, revives none, and never ends worse than it began."""

from __future__ import annotations

import copy
import hashlib
import os
import subprocess
import sys
from functools import cache
from itertools import pairwise, permutations
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from freelunch.engine.blocks import find_halves, run_part
from freelunch.engine.overlays import InMemory, Replaced
from freelunch.engine.states import States
from freelunch.engine.streaming import Network
from freelunch.errors import FreelunchError
from freelunch.plan.specs import Training
from freelunch.recover.flows import FLOWS
from freelunch.recover.reconstruct import reconstruct_window
from freelunch.recover.schedule import validation_steps
from freelunch.recover.training import Trained, batch_order
from freelunch.recover.windows import tile
from tiny import magnitude_masks, masked, random_model, random_tokens

BLOCKS, LENGTH, BATCH = 3, 12, 3
SEQUENCES = {"calibration": 8, "validation": 3}
FAMILIES = ["llama", "opt", "gemma2"]
TRAINING = Training(epochs=3, batch_size=3, learning_rate=5e-4, warmup=0.2, seed=0)
ALL = tuple(range(BLOCKS + 1))

FIRST_HALF = {
    "llama": ("self_attn.", "input_layernorm."),
    "opt": ("self_attn.", "self_attn_layer_norm."),
    "gemma2": ("self_attn.", "input_layernorm.", "post_attention_layernorm."),
}


class Case:
    """A tiny dense model with its states on both splits, and masks that prune half of every matrix by magnitude."""

    def __init__(self, family="llama", dtype=torch.bfloat16, kept=(0,), pattern="50%", **config):
        self.family, self.dtype = family, dtype
        self.model = random_model(family, dtype=dtype, **config)
        # a copy: should training write to its source, the model still says what was there
        self.dense = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.network = Network(self.model.config, InMemory(self.dense), dtype)
        self.masks = magnitude_masks(self.dense, self.network.prefix, pattern)
        self.folder = TemporaryDirectory()
        self.boundaries = {split: self._boundaries(split) for split in SEQUENCES}
        self.kept = kept

    def _boundaries(self, split):
        tokens = random_tokens(SEQUENCES[split], LENGTH, seed=len(split))
        parts = [self.network.embed(part) for part in tokens.split(BATCH)]
        found = [torch.cat(parts)]
        for index in range(BLOCKS):
            with self.network.block(index) as block:
                parts = [self.network.run_block(index, block, part) for part in parts]
            found.append(torch.cat(parts))
        return found

    def states(self, kept=None):
        walks = {}
        for split, states in self.boundaries.items():
            boundaries = {at: states[at] for at in kept or self.kept}
            walks[split] = States(self.network, boundaries, BATCH, Path(self.folder.name))
        return walks

    def train(self, kind, indices=None, training=TRAINING, states=None) -> dict[int, Trained]:
        """Train some windows in the given order, all on the same walk."""
        windows, states = tile(kind, BLOCKS), states or self.states()
        embedded = {split: found[0] for split, found in self.boundaries.items()}
        flow = FLOWS["dense"](states, self.network, embedded, windows, BATCH, Path(self.folder.name))
        order = range(len(windows)) if indices is None else indices
        return {i: reconstruct_window(flow, windows[i], self.masks.get, training) for i in order}

    def initial(self, name):
        """A tensor of the pruned model."""
        tensor = self.model.state_dict()[name]
        return tensor * self.masks[name] if name in self.masks else tensor

    def inside(self, window):
        """Names of the parameters in a window, told by their modules' names."""
        names = []
        for name, _ in self.model.named_parameters():
            if not name.startswith(f"{self.network.prefix}."):
                continue
            block, _, rest = name.removeprefix(f"{self.network.prefix}.").partition(".")
            position = 2 * int(block) + (not rest.startswith(FIRST_HALF[self.family]))
            if window.start <= position < window.stop:
                names.append(name)
        return names

    def loss(self, window, tensors):
        """Validation loss of a window with some tensors over the pruned model, written out."""
        source = Replaced(masked(self.model.state_dict(), self.masks), InMemory(tensors))
        network = Network(self.model.config, source, self.dtype)
        dense = Network(self.model.config, InMemory(dict(self.model.state_dict())), self.dtype)
        states = self.boundaries["validation"]
        calls = network.calls(SEQUENCES["validation"], LENGTH)

        def between(block):
            """States between the halves of a block of the dense model, and where it is cut."""
            with dense.block(block) as module:
                halves = find_halves(module, states[block], calls[block])
                return run_part(module, "attention", halves, states[block], calls[block]), halves

        start, stop = window.start, window.stop
        hidden = (between(start // 2)[0] if start % 2 else states[start // 2]).float()
        target = (between(stop // 2)[0] if stop % 2 else states[stop // 2]).float()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.dtype != torch.float32):
            for index in window.blocks:
                halves = between(index)[1]
                with network.block(index) as block:
                    hidden = run_part(block.float(), window.part(index), halves, hidden, calls[index])
        return (hidden.double() - target.double()).square().mean().item()


@cache
def trained(family, kind, dtype=torch.bfloat16):
    case = Case(family, dtype)
    return case, [(tile(kind, BLOCKS)[i], result) for i, result in case.train(kind).items()]


def digest(results):
    state = hashlib.sha256()
    for index, result in sorted(results.items()):
        state.update(f"{index} {result.fit.steps} {result.fit.losses}".encode())
        for name, tensor in sorted(result.tensors.items()):
            state.update(name.encode() + tensor.float().numpy().tobytes())
    return state.hexdigest()


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for index in one:
        mine, theirs = one[index].fit, other[index].fit
        assert (mine.steps, mine.losses) == (theirs.steps, theirs.losses), f"window {index}"
        assert one[index].tensors.keys() == other[index].tensors.keys()
        for name, tensor in one[index].tensors.items():
            assert torch.equal(tensor, other[index].tensors[name]), name


families = pytest.mark.parametrize("family", FAMILIES)
every_window = pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", "attention_mlp"), ("llama", 2), ("opt", "block"), ("gemma2", "attention_mlp"), ("gemma2", 3)],
)


# --- what comes out --------------------------------------------------------------------------------------------------


@every_window
def test_the_parameters_of_the_window_are_trained_no_others_and_no_pruned_ones(family, kind):
    case, results = trained(family, kind)
    for window, result in results:
        assert sorted(result.tensors) == sorted(case.inside(window)), window.name
        for name, tensor in result.tensors.items():
            assert tensor.dtype == case.dtype and tensor.shape == case.initial(name).shape
            if (mask := case.masks.get(name)) is not None:
                assert not torch.equal(tensor, case.initial(name)), f"{name} was not trained"
                assert not tensor[~mask].any() and bool((tensor[mask] != 0).all()), name
    # every parameter of the blocks is in exactly one window
    everything = [name for _, result in results for name in result.tensors]
    blocks = f"{case.network.prefix}."
    assert sorted(everything) == sorted(name for name, _ in case.model.named_parameters() if name.startswith(blocks))
    assert all(parameter.is_meta for block in case.network.blocks for parameter in block.parameters())


@every_window
def test_the_loss_falls_and_the_best_state_is_the_one_returned(family, kind):
    case, results = trained(family, kind)
    for window, result in results:
        record = result.record()
        assert record["best_loss"] == min(result.fit.losses) < 0.99 * result.fit.losses[0], window.name
        assert record["best_step"] == result.fit.steps[result.fit.losses.index(min(result.fit.losses))]
        assert case.loss(window, {}) == pytest.approx(result.fit.losses[0], rel=1e-5), window.name
        assert case.loss(window, result.tensors) == pytest.approx(record["best_loss"], rel=1e-5), window.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@families
def test_training_that_only_does_harm_gives_the_pruned_window_back(family, dtype):
    case = Case(family, dtype)
    wild = Training(epochs=2, batch_size=4, learning_rate=1.0, warmup=0.0, seed=0)
    for window, result in zip(tile("block", BLOCKS), case.train("block", training=wild).values(), strict=True):
        assert min(result.fit.losses[1:]) > result.fit.losses[0] and result.record()["best_step"] == 0, window.name
        for name, tensor in result.tensors.items():
            assert torch.equal(tensor, case.initial(name)), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["attention_mlp", "block"])
def test_training_does_not_write_to_the_source(dtype, kind):
    case = Case("llama", dtype)
    case.train(kind)
    wrong = [name for name, tensor in case.model.state_dict().items() if not torch.equal(tensor, case.dense[name])]
    assert wrong == []


def test_a_matrix_without_a_mask_is_trained_dense():
    case = Case("llama")
    free = f"{case.network.prefix}.0.mlp.up_proj.weight"
    del case.masks[free]
    result = case.train("block", [0])[0]
    assert bool((result.tensors[free] != 0).all()) and min(result.fit.losses) < result.fit.losses[0]


# --- joint training, against a plain loop ----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "index"), [("block", 1), (2, 0), (3, 0)], ids=str)
def test_a_window_of_blocks_equals_a_plain_loop_that_trains_them_jointly(kind, index):
    case = Case("llama", torch.float32, ALL)
    window = tile(kind, BLOCKS)[index]
    training = Training(epochs=2, batch_size=3, learning_rate=1e-3, warmup=0.5, seed=5)
    result = case.train(kind, [index], training)[index]

    model = copy.deepcopy(case.model).eval()
    layers = [model.model.layers[i] for i in window.blocks]
    named = {f"model.layers.{i}.{n}": p for i in window.blocks for n, p in model.model.layers[i].named_parameters()}
    rotary = model.model.rotary_emb(torch.zeros(1, LENGTH, 32), torch.arange(LENGTH).unsqueeze(0))

    def apply_masks():
        with torch.no_grad():
            for name in named.keys() & case.masks.keys():
                named[name].mul_(case.masks[name])

    def loss_of(split, rows):
        states = case.boundaries[split]
        hidden = states[window.start // 2][rows]
        for layer in layers:
            hidden = layer(hidden, position_embeddings=rotary, attention_mask=None)
        return (hidden - states[window.stop // 2][rows]).square().mean()

    def validate():
        with torch.no_grad():
            losses.append(loss_of("validation", slice(None)).item())
        snapshots.append({name: parameter.detach().clone() for name, parameter in named.items()})

    losses, snapshots = [], []
    apply_masks()
    validate()
    optimizer = torch.optim.AdamW(named.values(), weight_decay=0, foreach=False, fused=False)
    order = batch_order(8, 3, 2, seed=5, window=index)
    rates = [1 / 3e3, 2 / 3e3, 1e-3, 1e-3, 2 / 3e3, 1 / 3e3]
    for step, (rows, rate) in enumerate(zip(order, rates, strict=True), start=1):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss_of("calibration", rows).backward()
        optimizer.step()
        apply_masks()
        if step in result.fit.steps:
            validate()
    assert result.fit.losses == pytest.approx(losses, rel=1e-4)
    best = snapshots[losses.index(min(losses))]
    assert result.tensors.keys() == best.keys()
    for name, tensor in best.items():
        # AdamW divides by tiny second moments, which makes much of the order of a sum
        torch.testing.assert_close(result.tensors[name], tensor, rtol=0, atol=5e-5)


# --- the same bits ---------------------------------------------------------------------------------------------------


def test_dropout_is_off():
    case = Case("opt", dropout=0.5)
    runs = [case.train("block", [0]) for _ in range(2)]
    assert_same_bits(*runs)
    assert case.loss(tile("block", BLOCKS)[0], {}) == pytest.approx(runs[0][0].fit.losses[0], rel=1e-5)


@pytest.mark.parametrize("kind", ["attention_mlp", 2], ids=str)
def test_a_fresh_network_gives_the_same_bits(kind):
    _, results = trained("llama", kind)
    again = Case("llama").train(kind)
    assert_same_bits(again, {window.index: result for window, result in results})


def test_another_seed_gives_other_weights_from_the_same_start():
    case, results = trained("llama", "block")
    other = case.train("block", [0], TRAINING.model_copy(update={"seed": 1}))[0]
    same = results[0][1]
    assert other.fit.losses[0] == same.fit.losses[0] and other.fit.losses[1:] != same.fit.losses[1:]
    assert any(not torch.equal(tensor, same.tensors[name]) for name, tensor in other.tensors.items())


def test_the_state_of_the_global_generator_does_not_matter():
    case, results = trained("llama", "block")
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert_same_bits(case.train("block", [1]), {1: results[1][1]})
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kept", [(0,), ALL], ids=str)
@pytest.mark.parametrize("order", list(permutations(range(BLOCKS)))[1:], ids=str)
def test_the_order_of_block_windows_does_not_change_a_bit(order, kept):
    case, results = trained("llama", "block")
    assert_same_bits(case.train("block", order, states=case.states(kept)), {w.index: r for w, r in results})


@pytest.mark.parametrize(
    "order",
    [
        (5, 4, 3, 2, 1, 0),
        (1, 0, 3, 2, 5, 4),
        (0, 4, 1, 2, 5, 3),
        (2, 5, 0, 1, 3, 4),
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_order_of_half_block_windows_does_not_change_a_bit(order, family):
    case, results = trained(family, "attention_mlp")
    assert_same_bits(case.train("attention_mlp", order), {w.index: r for w, r in results})


def test_another_process_gives_the_same_bits():
    code = "from test_reconstruct import *; print(digest(Case('llama').train('attention_mlp', [1, 2])))"
    root = Path(__file__).parents[2]
    path = os.pathsep.join(str(root / folder) for folder in ("workflow", "tests", "tests/recover"))
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | threads | {"PYTHONPATH": path, "PYTHONHASHSEED": "7"},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    _, results = trained("llama", "attention_mlp")
    assert done.stdout.strip() == digest({i: results[i][1] for i in (1, 2)})


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("split", "step"), [("calibration", r"1: the training loss"), ("validation", r"0: the validation loss")]
)
@pytest.mark.parametrize("boundary", [1, 2])
def test_a_state_that_is_not_finite_is_reported_with_window_and_step(split, step, bad, boundary):
    case = Case("llama", kept=ALL)
    case.boundaries[split][boundary][:, 3, 4] = bad
    with pytest.raises(FreelunchError, match=rf"^window 1, step {step} is (nan|inf)"):
        case.train("block", [1])


def test_weights_that_are_revived_are_reported_with_window_and_matrix(monkeypatch):
    class Reviving(torch.optim.AdamW):
        def step(self):
            super().step()
            with torch.no_grad():
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter.add_(1e-7)

    monkeypatch.setattr(torch.optim, "AdamW", Reviving)
    with pytest.raises(FreelunchError, match=r"^window 1: 512 pruned weights of .*q_proj\.weight are not zero"):
        Case("llama").train("block", [1])


def test_a_failed_window_leaves_no_weights_in_memory():
    case = Case("llama", kept=ALL)
    case.boundaries["calibration"][2][0, 0, 0] = float("nan")
    with pytest.raises(FreelunchError, match=r"window 0-1, step \d: the training loss"):
        case.train(2, [0])
    assert all(p.is_meta for block in case.network.blocks for p in block.parameters())


# --- the schedule ----------------------------------------------------------------------------------------------------

totals = st.integers(1, 2000)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 4), st.integers(0, 2**31 - 1), st.integers(0, 200))
def test_every_epoch_visits_every_sequence_once(count, batch_size, epochs, seed, window):
    order = batch_order(count, batch_size, epochs, seed, window)
    each = -(-count // batch_size)
    assert len(order) == epochs * each
    for epoch in range(epochs):
        steps = order[epoch * each : (epoch + 1) * each]
        assert sorted(torch.cat(steps).tolist()) == list(range(count))
        assert all(len(rows) == batch_size for rows in steps[:-1])


def test_orders_of_epochs_windows_and_seeds_differ():
    def flat(seed, window, epoch=0):
        return tuple(torch.cat(batch_order(32, 32, 2, seed, window)[epoch : epoch + 1]).tolist())

    assert len({flat(0, 0), flat(0, 0, 1), flat(0, 1), flat(1, 0)}) == 4
    assert flat(3, 4) == flat(3, 4)


@given(totals, st.integers(1, 30))
def test_validation_steps_are_spread_evenly_up_to_the_last_step(total, epochs):
    steps = validation_steps(total, epochs)
    assert steps == sorted(set(steps)) and steps[0] >= 1 and steps[-1] == total
    assert len(steps) == min(total, max(epochs, 3))
    gaps = [after - before for before, after in pairwise([0, *steps])]
    assert max(gaps) - min(gaps) <= 1


@given(st.integers(1, 50), st.integers(4, 20))
def test_every_epoch_ends_with_a_validation_when_there_are_four_or_more(each, epochs):
    assert validation_steps(each * epochs, epochs) == [each * epoch for epoch in range(1, epochs + 1)]
