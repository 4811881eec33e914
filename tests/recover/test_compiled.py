"""Compiled training is training: the same losses but for rounding, one compilation for all blocks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from freelunch.doctor import find_compiler
from freelunch.engine.overlays import InMemory
from freelunch.engine.states import States
from freelunch.engine.streaming import Network
from freelunch.errors import FreelunchError
from freelunch.plan.specs import Training
from freelunch.recover.flows import DenseFlow
from freelunch.recover.reconstruct import reconstruct_window
from freelunch.recover.retrain import retrain
from freelunch.recover.training import compiled
from freelunch.recover.windows import BlockMatrices, tile
from tiny import magnitude_masks, masked, random_model, random_tokens

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
TRAINING = Training(epochs=2, batch_size=2, learning_rate=1e-3)
TOKENS = {"calibration": random_tokens(5, 12), "validation": random_tokens(3, 12, 1)}


class Case:
    """A tiny model, and the same with half of its weights masked."""

    def __init__(self, family):
        self.config = (model := random_model(family)).config
        self.state = model.state_dict()
        self.dense = Network(self.config, InMemory(dict(self.state)), torch.float32)
        self.masks = magnitude_masks(self.state, self.dense.prefix)

    def student(self):
        return Network(self.config, masked(self.state, self.masks), torch.float32)

    def reconstructed(self, kind, folder, compile_, training=TRAINING):
        """Fit and tensors of every window."""
        embedded = {split: self.dense.embed(tokens) for split, tokens in TOKENS.items()}
        walks = {split: States(self.dense, {0: hidden}, 2, folder) for split, hidden in embedded.items()}
        inside = [BlockMatrices((), "self_attn.k_proj", "mlp.up_proj")] * len(self.dense.blocks)
        windows = tile(kind, len(self.dense.blocks), inside)
        student = self.student()
        flow = DenseFlow(walks, student, embedded, windows, 2, folder)
        found = [reconstruct_window(flow, each, self.masks.get, training, compile_) for each in windows]
        children = [child for block in student.blocks for child in block.children()]
        assert not any("forward" in vars(child) for child in children)  # as they were
        return found


def close(one, other):
    """Whether two trainings went the same way, up to the order in which numbers are added up."""
    assert one.fit.steps == other.fit.steps
    assert one.fit.losses == pytest.approx(other.fit.losses, rel=2e-3)
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor == 0, other.tensors[name] == 0)
        assert torch.allclose(tensor, other.tensors[name], atol=2e-3)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize(
    ("family", "kind", "parametrization"),
    [
        ("llama", "attention_mlp", "full + biases + norms"),
        ("llama", "block", "full"),
        ("opt", "block", "full + biases + norms"),
    ],
)
def test_compiled_windows_train_as_others(family, kind, parametrization, tmp_path):
    case, training = Case(family), TRAINING.model_copy(update={"parametrization": parametrization})
    plain, found = (case.reconstructed(kind, tmp_path, each, training) for each in (False, True))
    for one, other in zip(found, plain, strict=True):
        close(one, other)
        assert other.fit.losses[-1] < other.fit.losses[0]
    counted = torch._dynamo.utils.counters
    # each variant of a module once, whatever the number of blocks
    assert 0 < counted["frames"]["ok"] == counted["frames"]["total"] < 32 and not counted["graph_break"]


def test_windows_of_matrices_are_not_compiled(tmp_path):
    Case("llama").reconstructed("key_up", tmp_path, True)
    assert not torch._dynamo.utils.counters["frames"]


def test_low_rank_weights_are_not_compiled(tmp_path):
    training = TRAINING.model_copy(update={"parametrization": "mask_lora(rank=2)"})
    case = Case("llama")
    plain, found = (case.reconstructed("block", tmp_path, each, training) for each in (False, True))
    for one, other in zip(found, plain, strict=True):
        close(one, other)
    counted = torch._dynamo.utils.counters["frames"]
    assert 0 < counted["ok"] < 10  # the norms


def test_compiled_retraining_trains_as_other():
    case, training = Case("llama"), TRAINING.model_copy(update={"loss": "cross_entropy"})
    plain, found = (
        retrain(case.student(), TOKENS, {}, case.masks.get, training, compile_=each) for each in (False, True)
    )
    close(found, plain)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0


def test_where_torch_cannot_compile_it_is_said_in_one_line(tmp_path):
    script = """
from pathlib import Path
import sys
from freelunch.errors import FreelunchError
from test_compiled import Case
try:
    Case("llama").reconstructed("block", Path(sys.argv[1]), True)
except FreelunchError as error:
    print(error)
"""
    environment = os.environ | {
        "CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)]),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("execution.compile: torch cannot compile here ("), done.stdout + done.stderr
    assert done.stdout.count("\n") == 1


def test_other_failures_stay_what_they_are():
    block = Case("llama").dense.blocks[0]
    with pytest.raises(FreelunchError, match=r"^mine$"), compiled([block], True):
        raise FreelunchError("mine")
    assert not any("forward" in vars(child) for child in block.children())
