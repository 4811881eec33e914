"""Retraining against the full transformers model: losses, gradients, what changes and what does not."""

from __future__ import annotations

import copy
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from freelunch.engine.overlays import InMemory
from freelunch.engine.streaming import Network
from freelunch.errors import FreelunchError
from freelunch.plan.specs import Training
from freelunch.recover import retrain as module
from freelunch.recover.retrain import retrain
from freelunch.recover.trainable import Trainable
from tiny import magnitude_masks, masked, random_model, random_tokens

LENGTH = 12
# the next token follows from the one before, so that there is something to learn
TOKENS = {
    split: 3 + (random_tokens(count, 1, count) + 5 * torch.arange(LENGTH)) % 31
    for split, count in (("calibration", 5), ("validation", 3))
}
CASES = [("llama", False), ("llama", True), ("opt", True), ("gemma2", True), ("gemma2", False)]
LOSSES = ["cross_entropy", "kl"]
STEP = Training(parametrization="full + biases + norms", loss="cross_entropy", optimizer="sgd", learning_rate=0.01,
                epochs=1, batch_size=5, warmup=0.0, schedule="constant")  # fmt: skip
RUN = STEP.model_copy(update={"optimizer": "adamw", "learning_rate": 2e-3, "epochs": 6, "batch_size": 2})

networks = pytest.mark.parametrize(("family", "tied"), CASES)
each_loss = pytest.mark.parametrize("loss", LOSSES)


@cache
def case_of(family, tied=True, dtype=torch.float32, sparsity="50%"):
    """A dense model, the same with masked weights, and the network that retraining gets."""
    dense = random_model(family, dtype=dtype, tie_word_embeddings=tied)
    state = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    if tied:
        state.pop("lm_head.weight")  # as saved models have it
    prefix = Network(dense.config, InMemory(state), dtype).prefix
    masks = magnitude_masks(state, prefix, sparsity)
    pruned = copy.deepcopy(dense)
    with torch.no_grad():
        for name, mask in masks.items():
            pruned.get_parameter(name).mul_(mask)
    network = Network(dense.config, masked(state, masks), dtype)
    last = {}
    for split, tokens in TOKENS.items():
        with torch.no_grad():
            plain = Network(dense.config, InMemory(state), dtype)
            hidden = plain.embed(tokens)
            for index in range(len(plain.blocks)):
                with plain.block(index) as block:
                    hidden = plain.run_block(index, block, hidden)
            last[split] = hidden
    return SimpleNamespace(dense=dense, pruned=pruned, state=state, masks=masks, network=network, last=last,
                           prefix=prefix)  # fmt: skip


def full_loss(case, model, loss, tokens):
    """The loss of a full model on whole sequences, as transformers and the definition of the divergence give it."""
    if loss == "cross_entropy":
        return model(input_ids=tokens, labels=tokens, use_cache=False).loss
    with torch.no_grad():
        target = case.dense(input_ids=tokens, use_cache=False).logits[:, :-1].double().log_softmax(-1)
    found = model(input_ids=tokens, use_cache=False).logits[:, :-1].double().log_softmax(-1)
    return (target.exp() * (target - found)).sum(-1).mean()


def train(case, training, **options):
    return retrain(case.network, TOKENS, case.last, case.masks.get, training, **options)


def watch(monkeypatch, look):
    """Have ``look`` called with what is trained after every backward pass."""
    real = Trainable.mask_gradients

    def mask_gradients(self):
        real(self)
        look(self)

    monkeypatch.setattr(Trainable, "mask_gradients", mask_gradients)


@networks
@each_loss
def test_the_first_validation_loss_is_that_of_the_full_pruned_model(family, tied, loss, monkeypatch):
    monkeypatch.setitem(module.VALIDATION_TOKENS, "retrain", 2 * LENGTH)  # batches of two sequences and of one
    case = case_of(family, tied)
    result = train(case, STEP.model_copy(update={"loss": loss}))
    with torch.no_grad():
        expected = full_loss(case, case.pruned, loss, TOKENS["validation"]).item()
        assert expected != pytest.approx(full_loss(case, case.dense, loss, TOKENS["validation"]).item(), rel=1e-3)
    assert result.fit.steps[0] == 0 and result.fit.losses[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2"])
def test_a_network_that_is_not_pruned_has_nothing_to_distil(family):
    case = case_of(family, sparsity="0%")
    result = train(case, STEP.model_copy(update={"loss": "kl"}))
    assert abs(result.fit.losses[0]) < 1e-6


@networks
@each_loss
@pytest.mark.parametrize("accumulation", [1, 2])
def test_gradients_are_those_of_the_full_model(family, tied, loss, accumulation, monkeypatch):
    case, found = case_of(family, tied), {}
    watch(monkeypatch, lambda trainable: found.update({n: p.grad.clone() for n, p in trainable.parameters.items()}))
    train(case, STEP.model_copy(update={"loss": loss, "accumulation": accumulation}))
    model = copy.deepcopy(case.pruned).requires_grad_(True)
    full_loss(case, model, loss, TOKENS["calibration"]).backward()
    expected = {name: each.grad for name, each in model.named_parameters() if name.startswith(f"{case.prefix}.")}
    assert found.keys() == expected.keys() and all(gradient.any() for gradient in found.values())
    for name, gradient in expected.items():
        gradient = gradient * case.masks.get(name, 1)
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "opt", "gemma2"])
@pytest.mark.parametrize("text", ["full + biases + norms", "mask_lora(rank=3) + norms"])
def test_computing_activations_again_changes_no_bit(family, text, dtype):
    training = RUN.model_copy(update={"epochs": 1, "parametrization": text})
    one, other = (train(case_of(family, dtype=dtype), training, recompute=recompute) for recompute in (True, False))
    assert one.fit.losses == other.fit.losses
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors | other.tensors)


@networks
@each_loss
def test_training_lowers_the_loss_of_the_full_model(family, tied, loss):
    """Embedding, last norm and head stay, masks hold, and the tensors in the full model give the best loss."""
    case = case_of(family, tied)
    kept = {name: tensor.clone() for name, tensor in case.state.items()}
    result = train(case, RUN.model_copy(update={"loss": loss}))
    best = min(result.fit.losses)
    assert best < 0.995 * result.fit.losses[0]
    names = {name for name, _ in case.dense.named_parameters() if name.startswith(f"{case.prefix}.")}
    assert result.tensors.keys() == names
    pruned = sum(int((~mask).sum()) for mask in case.masks.values())
    assert result.trained == sum(tensor.numel() for tensor in result.tensors.values()) - pruned
    for name, mask in case.masks.items():
        assert not result.tensors[name][~mask].any() and (result.tensors[name][mask] != 0).all(), name
    model = copy.deepcopy(case.pruned)
    with torch.no_grad():
        for name, tensor in result.tensors.items():
            assert not torch.equal(model.get_parameter(name), tensor), name
            model.get_parameter(name).copy_(tensor)
        assert full_loss(case, model, loss, TOKENS["validation"]).item() == pytest.approx(best, rel=1e-5)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in case.state.items())
    assert all(parameter.is_meta for block in case.network.blocks for parameter in block.parameters())


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2"])
@pytest.mark.parametrize("part", ["lora_prune", "mask_lora", "scale_lora", "spp"])
def test_low_rank_parts_lower_the_loss_and_keep_the_masks(family, part):
    case = case_of(family)
    settings = "rank=4" if part == "scale_lora" else "rank=4, alpha=4"
    changes = {"parametrization": f"{part}({settings}) + biases(add=1)", "learning_rate": 5e-3, "epochs": 3}
    result = train(case, RUN.model_copy(update=changes))
    assert min(result.fit.losses) < result.fit.losses[0]
    assert (result.fit.unmerged is None) == (part != "lora_prune")
    assert result.fit.unmerged != min(result.fit.losses)
    for name, mask in case.masks.items():
        assert not result.tensors[name][~mask].any()
        assert result.tensors[name.replace(".weight", ".bias")].any()
    again = train(case, STEP)  # the blocks are as they were
    assert not [name for name in again.tensors if family != "opt" and name.endswith("bias")]


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2"])
@pytest.mark.parametrize("text", ["full", "norms", "mask_lora(rank=2)"])
def test_only_what_is_trained_is_held_in_float32(family, text, monkeypatch):
    """Besides vectors: norms read the float32 residual stream."""
    case, looked = case_of(family, dtype=torch.bfloat16), []

    def look(trainable):
        assert {parameter.dtype for parameter in trainable.parameters.values()} == {torch.float32}
        for index, block in enumerate(case.network.blocks):
            for name, parameter in block.named_parameters():
                trained = f"{case.network.block_name(index)}.{name}" in trainable.parameters
                factor = name.endswith((".down", ".up"))
                assert parameter.requires_grad == (trained or factor), name
                wanted = torch.float32 if trained or factor or parameter.ndim == 1 else torch.bfloat16
                assert parameter.dtype == wanted, name
        around = [case.network._embedding, case.network._head]
        assert all(parameter.dtype == torch.bfloat16 for each in around for parameter in each.parameters())
        looked.append(True)

    watch(monkeypatch, look)
    result = train(case, STEP.model_copy(update={"parametrization": text}))
    assert looked and all(tensor.dtype == torch.bfloat16 for tensor in result.tensors.values())


def test_a_bfloat16_model_is_validated_with_what_is_saved():
    case = case_of("opt", dtype=torch.bfloat16)
    result = train(case, RUN)
    model = copy.deepcopy(case.pruned)
    with torch.no_grad():
        before = full_loss(case, model, "cross_entropy", TOKENS["validation"]).item()
        for name, tensor in result.tensors.items():
            model.get_parameter(name).copy_(tensor)
        after = full_loss(case, model, "cross_entropy", TOKENS["validation"]).item()
    assert result.fit.losses[0] == pytest.approx(before, rel=3e-3)
    assert min(result.fit.losses) == pytest.approx(after, rel=3e-3) and after < 0.99 * before


def test_what_goes_wrong_names_the_model():
    case = case_of("llama")
    with pytest.raises(FreelunchError, match=r"^model: parametrization biases finds nothing to train"):
        train(case, STEP.model_copy(update={"parametrization": "biases"}))
    broken = {split: states * float("nan") for split, states in case.last.items()}
    with pytest.raises(FreelunchError, match=r"^model, step 0: the validation loss is nan$"):
        retrain(case.network, TOKENS, broken, case.masks.get, STEP.model_copy(update={"loss": "kl"}))
    assert isinstance(case.network.blocks[0].self_attn.q_proj, nn.Linear)
    assert case.network.blocks[0].self_attn.q_proj.weight.is_meta
