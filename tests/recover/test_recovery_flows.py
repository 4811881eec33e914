"""Every window is trained on what hooks see in whole models: dense ones, recovered ones, and hybrids of the two.

A hybrid is the dense model with some of its tensors replaced by the student's: pruned, and trained where windows were.
With those in front of a window its inputs are sparse; with those in and behind it the window itself is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from freelunch.engine.overlays import InMemory, Masked, Replaced, pack
from freelunch.engine.states import States
from freelunch.engine.streaming import Network
from freelunch.plan.specs import Training
from freelunch.recover.flows import FLOWS, DenseFlow, Pairs
from freelunch.recover.reconstruct import reconstruct_window
from freelunch.recover.training import Trained
from freelunch.recover.windows import BlockMatrices, Window, tile
from tiny import random_model, random_tokens

LENGTH, BATCH = 12, 2
KINDS: list[Any] = ["matrix", "key_up", "attention_mlp", "block", 2, "model"]
TRAINING = Training(parametrization="full + biases + norms", epochs=1, batch_size=2, learning_rate=3e-3, warmup=0.0)

ATTENTION = tuple(f"self_attn.{name}_proj" for name in "qkv")
GATED = (*ATTENTION, "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
MATRICES = {"opt": (*ATTENTION, "self_attn.out_proj", "fc1", "fc2")}
BOUNDARY = {"opt": "final_layer_norm", "gemma2": "pre_feedforward_layernorm"}
"""What reads the state between the halves, which comes first among the modules of the second half."""
NORMS = {
    "opt": ("self_attn_layer_norm",),
    "gemma2": ("input_layernorm", "post_attention_layernorm"),
}
"""Norms of the first half."""


def first_half(family: str) -> tuple[str, ...]:
    return ("self_attn.", *(f"{name}." for name in NORMS.get(family, ("input_layernorm",))))


class Case:
    """A tiny dense model, masks that prune half of each matrix at random, and the student under them."""

    def __init__(
        self, family: str, flow: str, kind: Any, targets: str = "all", model: Any = None, calibration: int = 5
    ) -> None:
        self.family, self.kind = family, kind
        self.model = model or random_model(family, num_hidden_layers=2 if kind == "matrix" else 3)
        blocks = self.model.config.num_hidden_layers
        self.dense = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        network = Network(self.model.config, InMemory(self.dense), self.model.dtype)
        self.prefix = network.prefix
        generator = torch.Generator().manual_seed(3)
        self.masks = {
            name: torch.rand(tensor.shape, generator=generator).argsort(1) < tensor.shape[1] // 2
            for name, tensor in self.dense.items()
            if name.startswith(f"{self.prefix}.") and tensor.ndim == 2
        }
        self.trained: dict[str, Tensor] = {}
        packed = InMemory({name: pack(mask) for name, mask in self.masks.items()})
        pruned = Masked(InMemory(self.dense), packed)
        self.student = Network(self.model.config, Replaced(pruned, InMemory(self.trained)), self.model.dtype)
        self.matrices = MATRICES.get(family, GATED)
        inside = [BlockMatrices(self.matrices, "self_attn.k_proj", self.matrices[-2])] * blocks
        self.windows = tile(kind, blocks, inside, targets)
        sequences = {"calibration": calibration, "validation": 3}
        self.tokens = {split: random_tokens(count, LENGTH, seed=count) for split, count in sequences.items()}
        embedded = {split: network.embed(tokens) for split, tokens in self.tokens.items()}
        self.folder = TemporaryDirectory()
        states = {s: States(network, {0: hidden}, BATCH, Path(self.folder.name)) for s, hidden in embedded.items()}
        self.flow: DenseFlow = FLOWS[flow](states, self.student, embedded, self.windows, BATCH, Path(self.folder.name))
        self.hybrid = copy.deepcopy(self.model)

    def train(
        self, training: Training = TRAINING
    ) -> Iterator[tuple[Window, dict[str, tuple[Tensor, Tensor]], Trained]]:
        """Each window, what it was trained on, and what came out, which the student does not have yet."""
        real = self.flow.pairs
        seen: Pairs = {}

        def noted(window: Window) -> Pairs:
            seen.update(real(window))
            return dict(seen)

        self.flow.pairs = noted  # type: ignore[method-assign]
        for window in self.windows:
            result = reconstruct_window(self.flow, window, self.masks.get, training)
            yield window, dict(seen), result
            self.trained.update(result.tensors)
            self.flow.leave(window)

    def order(self, name: str) -> tuple[int, int]:
        """Block of a parameter, and its place in there: the half, or of matrices the order of calls."""
        block, _, rest = name.removeprefix(f"{self.prefix}.").partition(".")
        if self.kind == "matrix":
            return int(block), self.matrices.index(rest.rpartition(".")[0])
        return int(block), int(not rest.startswith(first_half(self.family)))

    def names(self, wanted: Callable[[tuple[int, int]], bool]) -> set[str]:
        """Parameters of the blocks that can be trained or pruned, by their order."""
        found = {name for name, _ in self.model.named_parameters() if name.startswith(f"{self.prefix}.")}
        if self.kind in ("matrix", "key_up"):
            found = {name for name in found if name.rpartition(".")[0].endswith(self.matrices)}
        return {name for name in found if wanted(self.order(name))}

    def before(self, window: Window) -> set[str]:
        """Parameters in front of a window."""
        place = self.matrices.index(window.matrices[0]) if self.kind == "matrix" else window.start % 2
        return self.names(lambda order: order < (window.blocks[0], place))

    def inside(self, window: Window) -> set[str]:
        """Parameters of a window."""
        if window.matrices:
            kept = {f"{self.prefix}.{window.blocks[0]}.{name}" for name in window.matrices}
            return {name for name in self.names(lambda _: True) if name.rpartition(".")[0] in kept}
        return self.names(lambda order: window.start <= 2 * order[0] + order[1] < window.stop)

    def pruned(self, name: str) -> Tensor:
        dense: Tensor = self.dense[name]
        return dense * self.masks[name] if name in self.masks else dense

    def seen(self, window: Window, tokens: Tensor, replaced: Collection[str]) -> tuple[Tensor, Tensor]:
        """State at a window's start and stop, as hooks see them in a hybrid."""
        state = {name: self.trained.get(name, self.pruned(name)) for name in replaced}
        self.hybrid.load_state_dict(self.dense | state)
        caught: dict[str, Tensor] = {}
        handles = []

        def watch(what: str, module: str, output: bool) -> None:
            def hook(_module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
                given = args[0] if args else kwargs["hidden_states"]
                found = (out[0] if isinstance(out, tuple) else out) if output else given
                caught[what] = found.reshape(*tokens.shape, -1).clone()

            handles.append(self.hybrid.get_submodule(module).register_forward_hook(hook, with_kwargs=True))

        first, last = (f"{self.prefix}.{window.blocks[at]}" for at in (0, -1))
        middle = BOUNDARY.get(self.family, "post_attention_layernorm")
        if window.matrices:
            one = len(window.matrices) == 1
            watch("start", f"{first}.{window.matrices[0]}" if one else first, output=False)
            watch("stop", f"{first}.{window.matrices[-1]}", output=True)
        else:
            watch("start", f"{first}.{middle}" if window.start % 2 else first, output=False)
            watch("stop", f"{last}.{middle}" if window.stop % 2 else last, output=not window.stop % 2)
        with torch.no_grad():
            self.hybrid(tokens)
        for handle in handles:
            handle.remove()
        return caught["start"], caught["stop"]


def close(found: Tensor, wanted: Tensor, what: str) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5, msg=lambda text: f"{what}: {text}")


def check_run(case: Case, flow: str) -> None:
    """Train all windows; inputs, targets and losses are those of whole models."""
    everything = case.names(lambda _: True)
    for window, pairs, result in case.train():
        before = case.before(window)
        for split, tokens in case.tokens.items():
            front = set() if flow == "dense" else everything
            target = before if flow == "sparse_local" else set()
            close(pairs[split][0], case.seen(window, tokens, front)[0], f"{window.name}, inputs of {split}")
            close(pairs[split][1], case.seen(window, tokens, target)[1], f"{window.name}, targets of {split}")
        student = everything - before if flow == "dense" else everything
        fit, wanted = result.fit, pairs["validation"][1]
        for loss, tensors in ((fit.losses[0], {}), (fit.losses[fit.best_at], result.tensors)):
            kept = dict(case.trained)
            case.trained.update(tensors)
            output = case.seen(window, case.tokens["validation"], student)[1]
            case.trained.clear()
            case.trained.update(kept)
            assert loss == pytest.approx((output - wanted).square().mean().item(), rel=1e-3), window.name
        assert result.tensors.keys() == case.inside(window), window.name
    check_result(case)


def check_result(case: Case) -> None:
    """Sparsity is exact, and the dense weights are what they were."""
    for name, mask in case.masks.items():
        assert torch.equal(case.trained.get(name, case.pruned(name)) != 0, mask), name
    assert all(torch.equal(tensor, case.dense[name]) for name, tensor in case.model.state_dict().items())


WHOLE = [(family, flow, kind) for family in ("llama", "opt", "gemma2")
         for flow in ("dense", "sparse_local", "sparse_dense") for kind in KINDS
         if kind != "matrix" or family in ("llama", "opt") or flow == "sparse_local"]  # fmt: skip


@pytest.mark.parametrize(("family", "flow", "kind"), WHOLE)
def test_windows_are_trained_on_what_whole_models_give(family: str, flow: str, kind: Any) -> None:
    check_run(Case(family, flow, kind), flow)


def official(model: Any, dense: dict[str, Tensor], tokens: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Matrices, inputs and targets of flow ``official_matrix``, written out from its description for a llama.

    Half by half with the modules of a whole model, whose matrices the caller replaces by recovered ones in between.
    """
    length = tokens.shape[1]
    stream = model.model.embed_tokens(tokens).detach()
    rotary = model.model.rotary_emb(stream, torch.arange(length).unsqueeze(0))
    causal = torch.full((length, length), -torch.inf).triu(1).expand(len(tokens), 1, length, length)
    for index, layer in enumerate(model.model.layers):
        for half in (GATED[:4], GATED[4:]):
            target = stream
            for name in half:
                caught: list[Tensor] = []
                handle = layer.get_submodule(name).register_forward_pre_hook(catching(caught))
                with torch.no_grad():
                    if "mlp" in name:
                        layer.mlp(layer.post_attention_layernorm(stream))
                    else:
                        given = layer.input_layernorm(stream)
                        layer.self_attn(given, position_embeddings=rotary, attention_mask=causal)
                handle.remove()
                target = caught[0] @ dense[f"model.layers.{index}.{name}.weight"].T
                yield f"{index}.{name}", caught[0], target
            stream = target  # of the dense matrix, and without what the half was given


def catching(caught: list[Tensor]) -> Callable[[nn.Module, Any], None]:
    """A hook that notes what its module is given."""

    def hook(_module: nn.Module, args: Any) -> None:
        caught.append(args[0])

    return hook


def test_official_matrix_hands_on_what_the_last_matrix_of_a_half_gives_alone() -> None:
    case = Case("llama", "official_matrix", "matrix")
    model = copy.deepcopy(case.model)
    wanted = official(model, case.dense, case.tokens["calibration"])
    for (window, pairs, result), (name, inputs, target) in zip(case.train(), wanted, strict=True):
        assert window.name == name and list(result.tensors) == [f"model.layers.{name}.weight"]
        close(pairs["calibration"][0], inputs, f"inputs of {name}")
        close(pairs["calibration"][1], target, f"targets of {name}")
        assert result.fit.losses[result.fit.best_at] <= result.fit.losses[0]
        model.load_state_dict(result.tensors, strict=False)
    check_result(case)


@pytest.mark.parametrize(
    ("flow", "kind"),
    [
        ("official_matrix", "matrix"),
        *product(("dense", "sparse_local", "sparse_dense"), ("matrix", "attention_mlp", 2)),
    ],
)
@pytest.mark.parametrize(
    ("parametrization", "kinds"),
    [("full", "weight"), ("mask_lora(rank=2) + norms", "weight norm"), ("biases(add=1)", "bias"),
     ("full + biases(add=1) + norms", "weight bias norm")],
)  # fmt: skip
def test_no_window_ends_worse_than_it_began(parametrization: str, kinds: str, flow: str, kind: Any) -> None:
    # halves of blocks without biases, too: the second half is cut when the first has its new ones
    family = "llama" if kind in ("matrix", 2) or ("add" in parametrization and kind == "attention_mlp") else "opt"
    case = Case(family, flow, kind)
    training = TRAINING.model_copy(update={"parametrization": parametrization, "learning_rate": 1e-2})
    fell = 0
    for window, _, result in case.train(training):
        losses = result.fit.losses
        assert result.record()["best_loss"] == min(losses) <= losses[0], window.name
        fell += min(losses) < losses[0]
        wanted = {name for name in case.inside(window) if kind_of(case, name) in kinds}
        if "bias" in kinds:  # those of layers that have none in the config
            wanted |= {name.replace(".weight", ".bias") for name in case.inside(window) if name in case.masks}
        assert result.tensors.keys() == wanted, window.name
    assert fell
    check_result(case)


def kind_of(case: Case, name: str) -> str:
    linear = name.rpartition(".")[0].endswith(case.matrices)
    return name.rpartition(".")[2] if linear else "norm"
