"""What has a path of its own on an accelerator gives what the CPU gives."""

from __future__ import annotations

import pytest
import torch

from freelunch.engine.device import deterministic
from freelunch.engine.states import batches
from freelunch.engine.transfers import Downloads, arriving, copies_for
from freelunch.pruning import statistics
from freelunch.pruning.allocations import lamp_scores
from freelunch.pruning.patterns import parse_pattern
from freelunch.pruning.statistics import add_gram


@pytest.mark.parametrize("pattern", ["50%", "2:4", "50% per matrix"])
def test_deterministic_algorithms_decide_masks_as_the_cpu_does(pattern: str, device: str) -> None:
    scores = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    scores[:, :5] = 0.25  # ties
    how = parse_pattern(pattern)
    count = how.pruned(scores.numel())
    with deterministic(True):
        mask, lamp = how.mask(scores.to(device), count), lamp_scores(scores.to(device))
    assert torch.equal(mask.cpu(), how.mask(scores, count))
    assert torch.allclose(lamp.cpu(), lamp_scores(scores))


def test_a_gram_matrix_of_the_host_takes_inputs_of_the_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_PANEL", 3)
    inputs, gram = torch.randn(5, 7, 24, generator=torch.Generator().manual_seed(0)), torch.zeros(24, 24)
    add_gram(gram, inputs.flatten(0, 1).to(device))
    expected = inputs.flatten(0, 1).double().T @ inputs.flatten(0, 1).double()
    torch.testing.assert_close(gram, expected.float(), rtol=1e-4, atol=1e-3)


def test_batches_arrive_and_return_as_plain_copies_would_bring_them(device: str) -> None:
    copies, states, room = copies_for(torch.device(device)), torch.randn(64, 256, 512), torch.zeros(64, 256, 512)
    rows = [*batches(60, 3), torch.tensor([63, 60]), torch.tensor([61, 62])]
    with Downloads(copies) as results:
        arrived = arriving(copies, [(states, each) for each in rows], torch.float32)
        for each, part in zip(rows, arrived, strict=True):
            assert part.device.type == device
            if device == "cuda":
                torch.cuda._sleep(10**7)  # a copy that does not wait for the computation would show
            results.write(part * 2 + 1, room, each)
    assert torch.equal(room, states * 2 + 1)
