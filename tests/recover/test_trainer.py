"""The training loop on a small regression, against loops: its steps, what it keeps, and what stops it."""

from __future__ import annotations

import json
import math
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from freelunch.engine.transfers import ahead
from freelunch.errors import FreelunchError
from freelunch.plan.specs import Training
from freelunch.recover.schedule import best_rate, trial_steps
from freelunch.recover.trainable import Trainable
from freelunch.recover.training import Trainer, batch_order

COUNT, VALIDATION, WIDTH, ROWS = 7, 5, 6, 4
PLAIN = {"epochs": 3, "batch_size": 3, "learning_rate": 0.01, "warmup": 0.0, "schedule": "constant"}
MASK = torch.rand(ROWS, WIDTH, generator=torch.Generator().manual_seed(9)) > 0.4


class Regression:
    """Sequences of two tokens through one linear layer; ``script`` replaces validation losses in turn."""

    now = None

    def __init__(self, script=(), broken_at=0):
        generator = torch.Generator().manual_seed(3)
        self.data = {split: tuple(torch.randn(count, 2, width, generator=generator) for width in (WIDTH, ROWS))
                     for split, count in (("calibration", COUNT), ("validation", VALIDATION))}  # fmt: skip
        self.layer = nn.Linear(WIDTH, ROWS)
        self.layer.weight.data = torch.randn(ROWS, WIDTH, generator=generator) * MASK
        self.layer.bias.data = torch.randn(ROWS, generator=generator)
        self.script, self.broken_at, self.sizes, self.validated = list(script), broken_at, [], []

    def count(self, split):
        return len(self.data[split][0])

    def validation_batch(self):
        return 3

    def load(self, split, rows):
        return split, *(part[rows] for part in self.data[split])

    def loss(self, batch):
        split, inputs, targets = batch
        if split == "validation":
            self.validated.append(len(inputs))
            if self.script and len(self.validated) % 2:  # passes of two batches, 3 and 2 sequences
                self.now = self.script.pop(0)
            if self.now is not None:
                return torch.tensor(self.now)
        else:
            self.sizes.append(len(inputs))
        found = (self.layer(inputs) - targets).square().mean()
        return found * float("nan") if split == "calibration" and len(self.sizes) == self.broken_at else found


def fit(changes=(), parametrization="full + biases", keeper=None, **options):
    """Train; what came out, and the parameters as the last step left them."""
    objective = Regression(**options)
    training = Training(parametrization=parametrization, **(PLAIN | dict(changes)))
    block = nn.ModuleDict({"layer": objective.layer})
    inside = {"layer.weight", "layer.bias"}
    masks = {"toy.layer.weight": MASK}
    trainable = Trainable([("toy", block, inside)], masks.get, training, torch.float32)
    start = trainable.state()
    result = Trainer(trainable, objective, training, "toy", 0, keeper).fit()
    last = {name: parameter.detach().clone() for name, parameter in trainable.parameters.items()}
    return SimpleNamespace(fit=result, last=last, start=start, objective=objective)


def by_hand(changes=(), step=None):
    """Weight and bias after all steps with the gradients of whole batches; ``step`` is an optimiser's."""
    objective, training = Regression(), Training(**(PLAIN | dict(changes)))
    order = batch_order(COUNT, training.batch_size, training.epochs, training.seed, 0)
    inputs, targets = objective.data["calibration"]
    values = [objective.layer.weight.data.double(), objective.layer.bias.data.double()]
    memory = [[torch.zeros_like(value), torch.zeros_like(value)] for value in values]
    for number, rows in enumerate(order, 1):
        error = inputs[rows].double() @ values[0].T + values[1] - targets[rows]
        gradients = [2 / error.numel() * torch.einsum("btr,btc->rc", error, inputs[rows].double()) * MASK,
                     2 / error.numel() * error.sum((0, 1))]  # fmt: skip
        norm = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients))
        if training.clip and norm > training.clip:
            gradients = [gradient * training.clip / norm for gradient in gradients]
        rate = training.learning_rate if training.schedule == "constant" else training.learning_rate * (
            1 - (number - 1) / len(order))  # fmt: skip
        for value, kept, gradient in zip(values, memory, gradients, strict=True):
            value -= rate * step(kept, gradient, number)
    return values


def sgd(kept, gradient, number):
    kept[0] = 0.9 * kept[0] + gradient
    return kept[0]


def adam(kept, gradient, number):
    kept[0] = 0.9 * kept[0] + 0.1 * gradient
    kept[1] = 0.999 * kept[1] + 0.001 * gradient**2
    return kept[0] / (1 - 0.9**number) / ((kept[1] / (1 - 0.999**number)).sqrt() + 1e-8)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["constant", "linear"])
@pytest.mark.parametrize("clip", [0.0, 0.3])
@pytest.mark.parametrize("accumulation", [1, 2, 3, 5])
@pytest.mark.parametrize(("optimizer", "step"), [("sgd", sgd), ("adamw", adam)])
def test_steps_follow_the_definition_however_a_batch_is_cut(optimizer, step, accumulation, clip, schedule):
    changes = {"optimizer": optimizer, "clip": clip, "schedule": schedule}
    found = fit(changes | {"accumulation": accumulation})
    for value, expected in zip(found.last.values(), by_hand(changes, step), strict=True):
        torch.testing.assert_close(value.double(), expected, rtol=2e-5, atol=2e-6)
    pieces = {1: [3, 3, 1], 2: [2, 1, 2, 1, 1], 3: [1] * 7, 5: [1] * 7}[accumulation]
    assert found.objective.sizes == 3 * pieces
    assert not found.last["toy.layer.weight"][~MASK].any()


def test_the_norm_is_bounded_over_all_parameters_together():
    """One plain step of rate 1 is as long as the gradient that it was made of."""
    lengths = {}
    for clip in (0.0, 0.01, 1e6):
        found = fit({"optimizer": "sgd", "batch_size": COUNT, "epochs": 1, "learning_rate": 1.0, "clip": clip})
        moves = [(found.last[name] - found.start[name]).flatten() for name in found.last]
        lengths[clip] = torch.cat(moves).norm().item()
    assert lengths[0.01] == pytest.approx(0.01, rel=1e-4)
    assert lengths[0.0] == lengths[1e6] > 0.1


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_training_stops_when_patience_is_over_and_keeps_the_best():
    script = [5.0, 4.0, 6.0, 3.0, 7.0, 3.0, 1.0, 0.5, 0.25]
    found = fit({"epochs": 8, "patience": 2}, script=script).fit
    assert found.steps == [0, 3, 6, 9, 12, 15] and found.losses == script[:6]
    assert found.best_at == 3  # the first of equals
    until = fit({"epochs": 3})
    assert same(found.best, until.last)  # the rate is constant: three epochs end where the best was seen
    assert fit({"epochs": 8}, script=script).fit.losses == script


def test_a_validation_loss_counts_sequences_alike_whatever_their_batches():
    found = fit()
    objective = Regression()
    inputs, targets = objective.data["validation"]
    error = inputs @ objective.layer.weight.T + objective.layer.bias - targets
    assert found.fit.losses[0] == pytest.approx(error.square().mean().item(), rel=1e-6)
    assert found.objective.validated == [3, 2] * len(found.fit.steps)
    assert found.fit.losses[found.fit.best_at] < found.fit.losses[0] and found.fit.unmerged is None


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("parametrization", ["full + biases", "mask_lora(rank=2)", "lora_prune(rank=2)"])
def test_if_training_makes_it_worse_the_initial_state_is_the_best(parametrization, optimizer):
    rate = 0.1 if optimizer == "sgd" and "lora" in parametrization else 3.0
    found = fit({"learning_rate": rate, "optimizer": optimizer, "epochs": 1}, parametrization)
    assert min(found.fit.losses[1:]) > found.fit.losses[0] and found.fit.best_at == 0
    assert same(found.fit.best, found.start)
    # of the last step, not of the state that is kept: what merging cost must not hide behind it
    assert (found.fit.unmerged is None) == ("lora_prune" not in parametrization)
    assert found.fit.unmerged != found.fit.losses[0]


def test_the_unmerged_loss_is_of_what_training_computed():
    found = fit({"learning_rate": 0.02}, "lora_prune(rank=3)").fit
    assert found.best_at == len(found.losses) - 1
    assert found.unmerged is not None and abs(found.unmerged - min(found.losses)) > 0.01


class Memory:
    """A keeper that keeps one checkpoint, and pulls the plug after one."""

    def __init__(self, kill_at=None):
        self.kept, self.kill_at = None, kill_at

    def load(self):
        return self.kept

    def due(self):
        return True

    def save(self, tensors, about):
        self.kept = {name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(about))
        if about["step"] == self.kill_at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("parametrization", "script"), [
    ("full + biases", ()), ("full + biases", (5.0, 2.0, 3.0, 4.0)), ("mask_lora(rank=2) + biases", ()),
    ("mask_lora(rank=2) + biases", (5.0, 2.0, 3.0, 4.0)), ("lora_prune(rank=2)", ()),
])  # fmt: skip
def test_a_training_goes_on_from_any_step_with_the_same_bits(parametrization, optimizer, script):
    changes = {"optimizer": optimizer, "schedule": "cosine", "warmup": 0.2, "patience": 3}
    whole = fit(changes, parametrization, script=script)
    assert not script or whole.fit.best_at == 1
    for kill_at in (1, 2, 3, 5, 8):
        keeper = Memory(kill_at)
        with pytest.raises(KeyboardInterrupt):
            fit(changes, parametrization, keeper, script=script)
        left = script[1 + kill_at // 3 :] if script else ()
        keeper.kill_at = None
        again = fit(changes, parametrization, keeper, script=left)
        assert same(again.last, whole.last) and same(again.fit.best, whole.fit.best)
        assert same(again.fit.adapters, whole.fit.adapters)
        names = ("rate", "steps", "losses", "unmerged")
        assert [getattr(again.fit, name) for name in names] == [getattr(whole.fit, name) for name in names]


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_loss_that_is_not_finite_names_place_and_step(accumulation):
    at = {1: 5, 3: 11}[accumulation]  # in parts: steps of 3, 3 and 1
    with pytest.raises(FreelunchError, match=r"^toy, step 5: the training loss is nan$"):
        fit({"accumulation": accumulation}, broken_at=at)
    with pytest.raises(FreelunchError, match=r"^toy, step 3: the validation loss is inf$"):
        fit(script=[2.0, math.inf])
    with pytest.raises(FreelunchError, match=r"^toy, step 0: the validation loss is nan$"):
        fit(script=[math.nan])


def test_batches_are_read_ahead_in_order_and_failures_come_through():
    order, read = [torch.tensor([i]) for i in range(5)], []

    def load(rows):
        read.append((int(rows), threading.current_thread() is threading.main_thread()))
        if int(rows) == 3:
            raise FreelunchError("row 3 is damaged")
        return int(rows) * 10

    assert list(ahead(load, order[:3])) == [0, 10, 20] and not list(ahead(load, []))
    assert read == [(0, False), (1, False), (2, False)]
    batches = ahead(load, order)
    assert [next(batches) for _ in range(3)] == [0, 10, 20]
    with pytest.raises(FreelunchError, match="row 3 is damaged"):
        next(batches)
    read.clear()
    threads, unfinished = threading.active_count(), ahead(load, order[:3])
    next(unfinished)
    unfinished.close()
    assert [row for row, _ in read] in ([0], [0, 1]) and threading.active_count() == threads


# --- searched rates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("parametrization", ["full + biases", "mask_lora(rank=2)", "spp(rank=3) + biases"])
def test_a_searched_rate_trains_as_if_it_had_been_given(parametrization, optimizer):
    changes = {"epochs": 12, "optimizer": optimizer}
    found = fit(changes | {"learning_rate": "auto"}, parametrization)
    given_rate = fit(changes | {"learning_rate": found.fit.rate}, parametrization)
    assert same(found.last, given_rate.last) and same(found.fit.best, given_rate.fit.best)
    assert (found.fit.steps, found.fit.losses) == (given_rate.fit.steps, given_rate.fit.losses)
    assert found.fit.rate == best_rate(found.fit.tried) and not given_rate.fit.tried
    short = trial_steps(12 * 3)
    assert len(found.objective.sizes) == len(found.fit.tried) * short + 12 * 3
    for rate, loss in found.fit.tried.items():  # a trial is a short run of its own
        assert loss == fit(changes | {"learning_rate": rate, "epochs": short // 3}, parametrization).fit.losses[-1]
    keeper = Memory(5)
    with pytest.raises(KeyboardInterrupt):
        fit(changes | {"learning_rate": "auto"}, parametrization, keeper)
    keeper.kill_at = None
    again = fit(changes | {"learning_rate": "auto"}, parametrization, keeper)
    assert same(again.last, found.last) and again.fit.tried == found.fit.tried
    assert len(again.objective.sizes) == 12 * 3 - 5  # no rate is tried again
