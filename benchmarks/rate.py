"""What the machine can do at best: the rate of large matrix products."""

from __future__ import annotations

import time

import torch

from freelunch.engine.device import choose, products


def matmul_rate(seconds: float = 2.0, device: torch.device | None = None) -> tuple[str, float]:
    """Operations per second of large matrix products, of the kind that a bfloat16 model is computed with; the best of
    several timings.

    Args:
        seconds: how long it is tried.
        device: the accelerator if there is one, if None.
    """
    device = device or choose("auto")
    kind = products(torch.bfloat16, device)
    size = 2048 if device.type == "cpu" else 8192
    one, other = (torch.randn(size, size, dtype=kind, device=device) for _ in range(2))
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        (one @ other)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return str(kind).removeprefix("torch."), 2 * size**3 / best
